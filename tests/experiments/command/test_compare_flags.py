"""Which rows a comparison has, and with how many settings: by its flags alone."""

import pytest

from experiments import compare
from experiments.command import compare_flags
from experiments.command.candidates import candidates


def args_of(*flags):
    return compare.arguments().parse_args(["--out", "x", *flags])


@pytest.mark.parametrize(
    ("flags", "tuned"),
    [([], False), (["--data", "y"], True), (["--tune"], True), (["--no-tune"], False),
     (["--data", "y", "--no-tune"], False), (["--data", "y", "--tune"], True)],
)  # fmt: skip
def test_settings_are_sought_with_data_unless_said_otherwise(flags, tuned):
    args = args_of(*flags)
    assert compare_flags.is_tuned(args) is tuned
    rows = compare_flags.candidates_of(args)
    assert {len(row.points) for row in rows} == {8 if tuned else 1}
    if tuned:
        args = args_of(*flags, "--settings", "3")
        assert {len(row.points) for row in compare_flags.candidates_of(args)} == {3}


def test_the_rows_are_those_that_are_asked_for_and_sgd():
    """A setting that is given is not sought; one that is not, 0 too, is no setting of all rows."""
    flags = ["--rule", "imbsam", "sam", "imbsam", "--loss", "focal", "--sampling", "shuffled"]
    flags += ["--rho", "0", "--lr", "0.3", "--perturb", "last-bias"]
    assert compare_flags.candidates_of(args_of(*flags)) == candidates(
        ["sgd", "imbsam", "sam"], ["cross_entropy", "focal"], settings=1,
        fixed={"rho": 0.0, "lr": 0.3}, samplings=["shuffled"], perturb="last-bias",
    )  # fmt: skip
    names = [row.name for row in compare_flags.candidates_of(args_of())]
    assert names == [
        "sgd, cross_entropy", "sgd, logit_adjusted", "sgd, class_balanced", "sgd, focal",
        *(f"{rule}, {loss}" for rule in ("sam", "imbsam", "focal_sam", "gsa")
          for loss in ("cross_entropy", "logit_adjusted")),
        "sgd, cross_entropy, balanced sampling",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--lr", "momentum 0.9; default 0.1, sought from 0.01 to 0.2 [over 0]"),
        ("--weight-decay", "at theta; default 0.001, sought from 1e-05 to 0.03 [at least 0]"),
        ("--beta", "numbers; default 0.999, sought from 0.9 to 0.9999 [at least 0 and below 1]"),
        ("--eta", "sought from 50% to 95% [at least 0]"),
    ],
)
def test_help_says_where_a_setting_is_sought(flag, shown):
    text = " ".join(compare.arguments().format_help().split())
    assert f"{flag} {flag[2:].upper().replace('-', '_')} " in text and shown in text
