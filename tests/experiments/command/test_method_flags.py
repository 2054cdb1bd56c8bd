"""Rules by name: a function of the library is a value of --rule, its parameters are flags."""

import argparse
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cifar_lt, digits_lt, sweep
from experiments.command import method_flags
from experiments.command.radii import flags_of
from experiments.host.errors import RunError
from imbsam_jax import rules, schedules
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


OPTIONS = vars(cifar_lt.arguments().parse_args(["--eta", "10", "--epochs", "10"]))


def build(name, **options):
    return method_flags.build_method(name, COUNTS, {**OPTIONS, **options}, steps_per_epoch=5)


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
    assert built(args)[0].running_statistics == "every"
    args.p_norm = args.group_mean = 3.0
    args.adaptive, args.weight_decay_inside = "asam", True
    every = "--adaptive, --asam-eta, --group-mean, --p-norm, --weight-decay-inside"
    with pytest.raises(RunError, match=f"gsa has a perturbation of its own, without {every}$"):
        built(args)


# ---- what a method is made of --------------------------------------------------------------


def test_a_method_is_described_by_the_flags_it_takes():
    _, found = build("imbsam", rho=0.1)
    assert found == {
        "rule": "imbsam",
        "rule_args": {"rho": 0.1, "eta": 10.0, "tail_scale": 1.0, "strict": False},
        "ascent": {},
    }
    assert build("sgd", p_norm=3.0)[1] == {"rule": "sgd", "rule_args": {}, "ascent": {}}
    _, found = build("sam", adaptive="asam", running_statistics="every")
    assert found["ascent"] == {
        "adaptive": "asam", "asam_eta": 0.01, "running_statistics": "every"
    }  # fmt: skip
    _, found = build("cc_sam", noise_ratio=0.1)
    assert found["rule_args"] == {
        "cc_variant": "paper", "cc_perturb": "classifier", "noise_ratio": 0.1
    }  # fmt: skip


def test_the_ascent_is_the_one_asked_for():
    method, _ = build("sam", p_norm=3.0, group_mean=True, adaptive="magnitude")
    assert method.ascent.p == 3.0 and method.ascent.group_mean
    plain = build("sam")[0].ascent
    assert (plain.p, plain.group_mean, plain.adaptive) == (2.0, False, None)
    added = build("sam", adaptive="asam", asam_eta=0.5)[0].ascent.adaptive
    np.testing.assert_array_equal(added({"w": np.array([-2.0, 3.0])})["w"], [2.5, 3.5])
    scale = method.ascent.adaptive({"w": jnp.array([-2.0, 3.0])})
    np.testing.assert_array_equal(scale["w"], [2.0, 3.0])


def test_weight_decay_may_be_inside_the_perturbed_loss():
    method, found = build("sam", weight_decay_inside=True, weight_decay=0.02)
    assert method.ascent.weight_decay == 0.02
    assert found["ascent"] == {"weight_decay_inside": True}
    assert build("sam", weight_decay=0.02)[0].ascent.weight_decay == 0
    # SGD has one too, which is the same at theta.
    assert build("sgd", weight_decay_inside=True, weight_decay=0.02)[0].ascent.weight_decay == 0.02


def test_sse_sam_switches_after_a_share_of_the_epochs():
    """A product that is whole but for the last bit is that number, of however many epochs."""
    for fraction, epochs, switch in (
        (0.7, 10, 35), (0.7, 200, 700), (0.65, 10, 35), (0.0, 10, 0), (0.54, 900_000, 2_430_000),
    ):  # fmt: skip
        method, found = build("sse_sam", switch_fraction=fraction, epochs=epochs)
        assert found["rule_args"]["switch_step"] == switch
        starts = [start for start, _ in method.stages()]
        assert starts == ([0, switch] if switch else [0])


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"rho_schedule": "constant", "rho": 0.2}, {0: 0.2, 49: 0.2}),
        ({"rho_schedule": "linear", "rho_values": [0.0, 0.9]}, {4: 0.0, 5: 0.1, 49: 0.9}),
        ({"rho_schedule": "late", "rho_values": [0.1, 0.2]}, {34: 0.1, 35: 0.2}),
        (
            {"rho_schedule": "step", "rho_values": [0.1, 0.2], "rho_boundaries": [9]},
            {44: 0.1, 45: 0.2},
        ),
        (
            {"rho_schedule": "step", "epochs": 200},
            {24: 0.05, 25: 0.1, 799: 0.1, 800: 0.5, 899: 0.5, 900: 0.6},
        ),
        # 5, 160 and 180 of 200 epochs.
        ({"rho_schedule": "step", "epochs": 40}, {4: 0.05, 5: 0.1, 159: 0.1, 160: 0.5, 180: 0.6}),
    ],
)  # fmt: skip
def test_radius_schedules_by_epoch(options, at):
    method, found = build("sam", **options)
    radii = {step: method.rule(step).radii[0] for step in at}
    assert radii == pytest.approx(at)
    if options["rho_schedule"] == "constant":
        return
    # What is written down tells all of it: two runs of other boundaries are two settings.
    told = found["rule_args"]["rho"]
    assert told == {"late": "late(0.1, 0.2)", "linear": "linear(0, 0.9)"}.get(
        options["rho_schedule"],
        "step(0.1, 0.2 from 9)"
        if "rho_boundaries" in options
        else "step(from 5, 160, 180)"
        if options.get("epochs") == 200
        else "step(from 1, 32, 36)",
    )
    again = flags_of(told)
    method, found = build("sam", **{**options, **again})
    assert {step: method.rule(step).radii[0] for step in at} == pytest.approx(at)
    assert found["rule_args"]["rho"] == told


def test_radius_schedules_without_values_take_the_published_ones():
    published = schedules.linear_radius(epochs=10, steps_per_epoch=5)  # Focal-SAM's release
    linear, found = build("sam", rho_schedule="linear")
    for step in (0, 5, 49):
        assert linear.rule(step).radii[0] == pytest.approx(published(step))
    assert found["rule_args"]["rho"] == "linear"
    late, found = build("sam", rho_schedule="late")
    assert [late.rule(step).radii[0] for step in (34, 35)] == pytest.approx([0.1, 0.2])
    assert found["rule_args"]["rho"] == "late"


def test_what_is_written_of_a_schedule_is_the_schedule():
    """In all digits, as long as epochs; of three the last published boundary is past them all."""
    seven = {"rho_schedule": "late", "rho_values": [0.1234567, 0.2]}
    assert build("sam", **seven)[1]["rule_args"]["rho"] == "late(0.1234567, 0.2)"
    for options in (seven, *({"rho_schedule": "step", "epochs": few} for few in (3, 4))):
        method, found = build("sam", **options)
        again, told = build("sam", **{**options, **flags_of(found["rule_args"]["rho"])})
        assert told == found
        radii = [[float(m.rule(step).radii[0]) for step in range(25)] for m in (method, again)]
        assert radii[0] == radii[1]


def test_the_first_boundary_of_a_step_is_a_later_epoch():
    """And one that is the last of the epochs is used in it."""
    radii = {"rho_schedule": "step", "rho_values": [0.1, 0.2], "rho_boundaries": [9]}
    for boundary in (1, 9):
        method, _ = build("sam", **{**radii, "rho_boundaries": [boundary]})
        seen = [float(method.rule(step).radii[0]) for step in (5 * boundary - 1, 5 * boundary)]
        assert seen == pytest.approx([0.1, 0.2])


def test_a_model_without_batch_normalisation_has_no_running_statistics():
    without = [*method_flags.WITHOUT_BATCH_NORM, *method_flags.PRETRAINED]
    for model, met in (("resnet32", True), *((name, False) for name in without),
                       (without, False), ([*without, "resnet8"], True)):  # fmt: skip
        assert method_flags.STATISTICAL.met(argparse.Namespace(model=model)) is met


def test_rules_that_leave_rows_out():
    """Those with a pass in which some class has no weight: METHODS of the paper, by hand."""
    assert method_flags.leaving_rows_out() == ["gsa", "imbsam", "sse_sam"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgdd", {}, "unknown rule 'sgdd'"),
        ("sse_sam", {"switch_fraction": 1.5}, "--switch-fraction must be between 0 and 1"),
        ("sse_sam", {"rho_schedule": "linear"}, "sse_sam has no --rho that --rho-schedule could"),
        ("sam", {"rho_values": [0.1]}, "--rho-values belong to a --rho-schedule"),
        ("sam", {"rho_schedule": "late", "rho_values": [0.1]}, "takes two --rho-values, got 1"),
        (
            "sam",
            {"rho_schedule": "step", "rho_values": [0.1, 0.2], "rho_boundaries": [10]},
            r"--rho-boundaries 10 is past the last of 10 epochs \(from 0\)",
        ),
        ("sam", {"rho_schedule": "linear", "rho_values": [0.1, -1]}, "radius must be finite"),
        (
            "cc_sam",
            {"p_norm": 3.0, "noise_ratio": 1e-6},
            "cc_sam has a perturbation of its own, without --p-norm",
        ),
        ("cc_sam", {"flat_ratio": 2.0, "noise_ratio": 1e-6}, "flat_ratio must be between 0 and 1"),
        ("cc_sam", {}, "noise_ratio must be chosen: the printed formula"),
        ("focal_sam", {"gamma": -1.0}, "gamma must be finite and at least 0"),
        ("reweighted_sam", {"tail_weight": 0.0}, "tail_weight must be finite and positive"),
    ],
)
def test_bad_methods_are_refused(name, options, message):
    with pytest.raises(RunError, match=message):
        build(name, **options)
