"""Which row a comparison says to use, at both sides of each bound."""

import pytest

from experiments.reports.verdict import verdict


def row(name, accuracy, mean=None, p=None, *, low=-1.0, reference=False, auroc=(0.0, -0.1, 0.1)):
    found = {"row": name, "balanced_accuracy": accuracy, "reference": reference, "p_holm": p}
    if mean is not None:
        found["difference"] = {"balanced_accuracy": [mean, low, 9.0], "auroc": list(auroc)}
    return found


BASE = row("sgd", 60.0)


@pytest.mark.parametrize(
    ("mean", "p", "used"),
    [(0.5, 0.05, "a"), (0.5, 0.0501, None), (0.0, 0.05, None), (-0.5, 0.01, None), (3, None, None)],
)
def test_better_is_a_positive_difference_with_a_p_of_at_most_five_percent(mean, p, used):
    """Wherever the interval of this one difference ends: p is Holm's."""
    said, name = verdict([BASE, row("a", 60 + mean, mean, p)], 10)
    assert name == used and said.startswith("Use a: " if used else "Nothing here is better than")


def test_from_two_splits_on_something_is_said():
    for splits, best in ((1, None), (2, "a"), (3, "a")):
        said, name = verdict([BASE, row("a", 63.0, 3.0, 0.01)], splits)
        assert name == best and said.startswith("One split" if best is None else "Use a")


@pytest.mark.parametrize(
    ("auroc", "words"),
    [
        ((0.02, 0.001, 0.04), " It ranks better, too (AUROC +0.020)."),
        ((0.02, 0.0, 0.04), " It does not rank better (AUROC +0.020): what it gains is by"),
        ((-0.02, -0.04, 0.0), " It does not rank better (AUROC -0.020): what it gains is by"),
        ((-0.02, -0.04, -0.001), " But it ranks worse (AUROC -0.020): what it gains is by its"),
        ((0.02, None, None), "Holm's p 0.010)."),
    ],
)
def test_whether_it_ranks_better_hangs_on_where_0_is(auroc, words):
    said, _ = verdict([BASE, row("a", 63.0, 3.0, 0.01, auroc=auroc)], 10)
    assert words in said and ("rank" in said) == (auroc[1] is not None)
    assert said.startswith(
        "Use a: balanced accuracy 63.0%, +3.0 points to sgd (95% interval -1.0 to +9.0, Holm's p "
    )


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([61.0, 62.0], " Outside this family t1 has 62.0%, more than sgd (60.0%)."),
        ([62.0, 61.0], " Outside this family t0 has 62.0%, more than sgd (60.0%)."),
        ([60.0, None], ""), ([None, 60.01], " Outside this family t1 has 60.0%, more than sgd"),
        ([], ""), ([59.0], ""),
    ],
)  # fmt: skip
def test_the_best_reference_is_named_where_it_has_more(others, words):
    rows = [row(f"t{k}", value, 1.0, reference=True) for k, value in enumerate(others)]
    said, _ = verdict([BASE, *rows], 10)
    assert words in said and ("Outside" in said) == bool(words)


def test_of_those_that_are_not_better_the_highest_is_named():
    rows = [row("lost", None, None), row("low", 0.5, -59.5, 1.0), row("lower", 0.25, -59.75, 1.0)]
    rows[0]["difference"] = {"balanced_accuracy": [None] * 3}
    for order in (rows, rows[::-1]):
        said, _ = verdict([BASE, *order], 10)
        assert ": the highest balanced accuracy of the others, low, is -59.5 points" in said
    said, _ = verdict([BASE, rows[0]], 10)
    assert said == "Nothing here is better than sgd beyond chance."
