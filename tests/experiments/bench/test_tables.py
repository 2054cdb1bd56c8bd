"""What lines add up to, and the table on the terminal."""

import numpy as np

from experiments.bench import tables
from experiments.bench.jobs import Line
from experiments.bench.training import Curve


def line(rule, all_, paired, diverged=None):
    splits = {"many": 90.0, "medium": 80.0, "few": 70.0, "all": all_}
    found = {"rule": rule, "loss": "cross_entropy", "stage2": None, "seeds": [0, 1]}
    for name, value in splits.items():
        found[name] = None if diverged else value
        found[f"{name}_sd"] = None if diverged else value / 100
    for name in ("paired_all", "paired_few"):
        found[name] = None if diverged else paired
        found[f"{name}_se"] = None if diverged else 0.25
    return {**found, "step_cost_ratio": None if diverged else 2.0, "diverged": diverged}


def test_means_deviations_differences_and_what_diverged(capsys):
    why = "sam: the loss [late] is not finite"
    tables.show([line("sgd", 81.0, 0.0), line("imbsam", 84.0, 3.0), line("sam", 1, 1, why)], "here")
    sgd, imbsam, sam, lost, *_ = (
        text.split()
        for text in capsys.readouterr().out.splitlines()
        if text.startswith(("sgd", "imbsam", "sam"))
    )
    splits = ["90.0", "±", "0.9", "80.0", "±", "0.8", "70.0", "±", "0.7"]
    assert sgd == ["sgd", *splits, "81.0", "±", "0.8", "2.00"]
    assert imbsam == [
        "imbsam", *splits, "84.0", "±", "0.8", "+3.0", "±", "0.2", "+3.0", "±", "0.2", "2.00",
    ]  # fmt: skip
    assert sam == ["sam", *["-"] * 7]
    assert " ".join(lost) == f"sam diverged: {why}"


def test_lines_add_up_over_seeds_by_hand():
    """Of the last of three epochs; in double precision, and paired with SGD of the first loss."""
    first = np.array([10.0, 20.0, 30.0], np.float32)
    seen = {"sgd": np.array([33.3, 16.7, 50.1], np.float32)}
    seen["sam"] = seen["sgd"] + np.array([1.1, 2.3, -0.7], np.float32)
    seconds = {"sgd": np.array([2.0, 1.0, 4.0]), "sam": np.array([4.0, 3.0, 20.0])}

    def line(rule, stage2=None):
        described = {"rule": rule, "loss": "cross_entropy", "stage2": stage2}
        splits = dict.fromkeys(tables.SPLITS, np.stack([first, first + 1, seen[rule]]))
        return Line(described, Curve([1, 2, 3], None, splits, None, None, seconds[rule]))

    lost = Line({"rule": "gsa", "loss": "cross_entropy", "stage2": None}, None, "not finite")
    sgd, sam, second, none = tables.summarise(
        [line("sgd"), line("sam"), line("sam", "crt"), lost], [0, 1, 2]
    )
    gained = (seen["sam"] - seen["sgd"]).astype(float)
    exact = seen["sam"].astype(float)
    for split in tables.SPLITS:
        assert sam[split] == exact.mean() != float(seen["sam"].mean())
        assert sam[f"{split}_sd"] == exact.std(ddof=1)
        assert sam[f"{split}_by_seed"] == exact.tolist()
    for split in ("all", "few"):
        assert sam[f"paired_{split}"] == gained.mean()
        assert sam[f"paired_{split}_se"] == gained.std(ddof=1) / np.sqrt(3)
        assert sgd[f"paired_{split}"] == sgd[f"paired_{split}_se"] == 0
    assert (sgd["epoch_seconds"], sam["epoch_seconds"]) == (2, 4)
    # The median of each epoch's ratio; a second stage is compared with nothing.
    assert (sgd["step_cost_ratio"], sam["step_cost_ratio"]) == (1, 3)
    assert second["step_cost_ratio"] is None and second["all"] == sam["all"]
    told = {k: v for k, v in none.items() if k not in ("rule", "loss", "seeds", "diverged")}
    assert set(told.values()) == {None} and none["diverged"] == "not finite"
    (alone,) = tables.summarise([line("sam")], [0, 1, 2])
    assert alone["paired_all"] is None and alone["step_cost_ratio"] is None
