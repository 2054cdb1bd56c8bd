"""What is drawn of a table's files: a panel a loss, lines named by their rules."""

import json

import pytest

from experiments.bench import folder
from experiments.reports import plots


@pytest.mark.parametrize("losses", [("cross_entropy",), ("cross_entropy", "logit_adjusted")])
def test_one_loss_has_one_panel_without_a_name(losses, tmp_path, monkeypatch):
    lines = [
        {"rule": rule, "loss": loss, "stage2": None, "seeds": [0, 1], "paired_all": 1.0,
         "paired_all_se": 0.5, "paired_few": 2.0, "paired_few_se": 0.5}
        for loss in losses for rule in ("sgd", "sam")
    ]  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(lines))
    from experiments.bench.tables import names

    text = ["rule,class,train_examples,accuracy", *(f"{n},0,9,50.0" for n in names(lines))]
    (tmp_path / "per_class.csv").write_text("\n".join(text) + "\n")
    drawn = []
    monkeypatch.setattr(plots, "classes_by_rule", lambda *args, **more: drawn.append(args[2]))
    monkeypatch.setattr(plots, "gains_by_rule", lambda *args, **more: None)
    assert folder.draw_table(tmp_path) == [tmp_path / "per_class.png", tmp_path / "gains.png"]
    assert list(drawn[0]) == ([""] if len(losses) == 1 else list(losses))
    assert all(list(panel) == ["sgd", "sam"] for panel in drawn[0].values())
