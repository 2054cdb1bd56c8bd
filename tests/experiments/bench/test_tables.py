"""The table on the terminal."""

from experiments.bench import tables


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
