"""Counts of adapters: how a batch is made up, and in which unit memory is told."""

import json

import pytest

from benchmarks import adapters
from experiments import models
from experiments.models import ADAPTERS, create_model

pytestmark = pytest.mark.allow_rank_promotion  # a classifier's bias


def test_a_quarter_of_a_batch_is_tail_and_no_batch_without():
    assert [adapters.tail_rows(size) for size in (1, 3, 4, 64)] == [1, 1, 1, 16]


def test_megabytes_are_of_two_to_the_twenty():
    assert adapters.megabytes(3 * 1024 * 1024 + 1024 * 512) == 3.5
    assert adapters.megabytes(1.06 * 2**20) == 1.1


@pytest.mark.slow
def test_what_a_step_of_an_adapter_costs(monkeypatch):
    """Of layers of 128 and 128 behind 32 x 32 x 3 numbers in the tower's place, all of it trained:
    a pass back costs what one forward does for the weights, and for what enters all but the first.
    SAM has two steps' passes; ImbSAM those of 8 rows and of the tail's two.
    """

    def made(name, classes, *, classifier, adapter):
        assert (name, classifier, adapter) == ("vit_tiny", "cosine", "full")
        return create_model("mlp", classes, classifier=classifier)

    monkeypatch.setattr(models, "create_model", made)
    found = adapters.row("vit_tiny", "full", 4, 8)
    assert found["trained"] == 3072 * 128 + 128 + 128 * 128 + 128 + 128 * 4
    assert (found["adapter"], found["frozen"]) == ("full", 0)
    # Parameters and momentum of four bytes.
    assert found["state_mb"] == round(8 * found["trained"] / 2**20, 1)
    numbers = {name: found[name] for name in ("sgd", "sam", "imbsam", "sam_compiled",
                                              "imbsam_compiled")}  # fmt: skip
    recorded = {"sgd": 2.479, "sam": 4.957, "imbsam": 3.678, "sam_compiled": 2.0,
                "imbsam_compiled": 1.509}  # fmt: skip
    assert numbers == pytest.approx(recorded, rel=0.01)
    assert numbers == {name: round(value, 3) for name, value in numbers.items()}
    # What is overwritten is not held twice: less than parameters, momentum and gradients.
    assert 1 < found["peak_mb"] < 2


def test_every_adapter_is_counted_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        adapters, "row", lambda name, adapter, classes, size: {"adapter": adapter, "of": name,
                                                               "at": [classes, size]}
    )  # fmt: skip
    flags = ["--model", "vit_b16", "--classes", "7", "--batch-size", "12", "--out", str(tmp_path)]
    adapters.main(adapters.arguments().parse_args(flags))
    found = json.loads((tmp_path / "adapters.json").read_text())
    rows = [{"adapter": name, "of": "vit_b16", "at": [7, 12]} for name in ADAPTERS]
    assert found["rows"] == rows and {"command", "device", "versions"} <= set(found)
    assert (found["model"], found["classes"], found["batch_size"]) == ("vit_b16", 7, 12)
    assert found["tail_rows"] == 3
    assert capsys.readouterr().out.splitlines()[0] == (
        f"adapter {rows[0]['adapter']}, of vit_b16, at [7, 12]"
    )
