"""Rules by name: a function of the library is a value of --rule, its parameters are flags."""

import inspect

import numpy as np
import pytest

from experiments import cifar_lt, digits_lt, sweep
from experiments.command import method_flags
from experiments.host.errors import RunError
from imbsam_jax import rules
from tiny import COUNTS

COUNTS = np.array(COUNTS)


@pytest.fixture
def made_up(monkeypatch):
    """A rule that someone adds to the library: SAM on the tail alone, by a factor."""

    def made_up(class_counts, *, rho, eta, kappa=1.0, strict=False):
        counts = np.asarray(class_counts)
        tail = (counts < eta if strict else counts <= eta) * kappa
        return lambda step: rules.ClassWeights(None, tail[None], np.array([rho]))

    monkeypatch.setattr(rules, "made_up", made_up, raising=False)
    monkeypatch.setattr(rules, "__all__", [*rules.__all__, "made_up"])
    return made_up


def kappa(monkeypatch):
    """The one line for a parameter of a new name."""
    flag = method_flags.Flag(0.5, "of the tail", {"type": method_flags.cli.number(over=0)})
    monkeypatch.setitem(method_flags.PARAMETERS, "kappa", flag)


def built(args):
    options = {**vars(args), "epochs": 10, "weight_decay": 0.0}
    return method_flags.build_method(args.rule, COUNTS, options, steps_per_epoch=5)


def test_every_rule_of_the_library_has_a_name():
    made = [name for name in rules.__all__ if not inspect.isclass(getattr(rules, name))]
    assert method_flags.rule_names() == sorted({*made, "cc_sam"} - {"Rule"})


def test_a_rule_that_is_added_needs_no_line_here(made_up, monkeypatch, capsys):
    """In whichever command: its choice, its flags and what is refused beside it."""
    kappa(monkeypatch)
    flags = ["--rule", "made_up", "--rho", "0.3", "--eta", "20", "--kappa", "2", "--p-norm", "3"]
    method, described = built(cifar_lt.arguments().parse_args(flags))
    table = method.rule(0)
    expected = made_up(COUNTS, rho=0.3, eta=20, kappa=2)(0)
    np.testing.assert_array_equal(table.groups, expected.groups)
    np.testing.assert_array_equal(table.radii, expected.radii)
    assert method.ascent.p == 3.0
    assert described["rule_args"] == {"rho": 0.3, "eta": 20.0, "strict": False, "kappa": 2.0}

    assert digits_lt.arguments().parse_args(["--out", "x", *flags]).rule == ["made_up"]
    args = sweep.parse(["--out", "x", "--rule", "made_up", "--grid", "kappa", "1", "2"])
    assert sweep.grid_of(args) == {"kappa": [1.0, 2.0]}

    parser = cifar_lt.arguments()
    shown = " ".join(parser.format_help().split())
    assert "imbsam, made_up, reweighted_sam, sam: radius" in shown
    assert "--kappa KAPPA made_up: of the tail [over 0] (default: 0.5)" in shown
    for flags, needs in (
        (["--rule", "made_up", "--gamma", "1"], "--gamma needs --rule focal_sam"),
        (["--rule", "sam", "--kappa", "1"], "--kappa needs --rule made_up"),
        (["--rule", "made_up", "--kappa", "0"], "--kappa must be finite and over 0"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(flags)
        assert needs in capsys.readouterr().err


def test_a_parameter_of_a_new_name_is_asked_for(made_up):
    with pytest.raises(LookupError, match="made_up takes kappa: give it a line in PARAMETERS"):
        cifar_lt.arguments()


def test_a_flag_of_another_name_gives_its_parameter():
    """GSA's scale is not LDAM's, beside which it stands."""
    flags = ["--rule", "gsa", "--gsa-scale", "0.5", "--gsa-direction", "plain"]
    args = cifar_lt.arguments().parse_args([*flags, "--loss", "ldam", "--scale", "7"])
    method, described = built(args)
    expected = rules.gsa(COUNTS, scale=0.5, direction="plain")
    np.testing.assert_array_equal(method.rule(0).radii, expected(0).radii)
    np.testing.assert_array_equal(method.rule(0).groups, expected(0).groups)
    assert method.rule.ascent == expected.ascent
    assert described["rule_args"] == {"gsa_scale": 0.5, "gsa_direction": "plain"}


def test_a_rule_with_a_perturbation_of_its_own_takes_no_other():
    args = cifar_lt.arguments().parse_args(["--rule", "gsa", "--running-statistics", "every"])
    assert built(args)[0].statistics == "every"
    args.p_norm = args.group_mean = 3.0
    with pytest.raises(RunError, match="--rule gsa has a perturbation of its own, without --group"):
        built(args)
