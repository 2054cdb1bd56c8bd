"""Passes over the rows that carry weight, in the trainer: the same run, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import cifar_lt
from experiments.command.plan import make_plan
from experiments.host.errors import RunError
from experiments.models import MODELS
from experiments.run.compatible import Asked, check
from experiments.run.fit import fit
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step.methods import Tabled
from experiments.step.objectives import Adversary, Objective
from experiments.step.optimizer import optimizer
from experiments.step.passing import Passing
from experiments.step.state import create_state
from experiments.step.step import Rows, make_step
from imbsam_jax import losses, rules
from tiny import COUNTS, TinyNet, tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

BASE = Settings(epochs=2, batch_size=16, lr=0.05, eta=10, eval_batch=20)
RULES = {
    "imbsam": rules.imbsam(COUNTS, rho=0.3, eta=10),
    "sse_sam": rules.sse_sam(COUNTS, head_rho=0.1, tail_rho=0.3, eta=10, switch_step=4),
    "focal_sam": rules.focal_sam(COUNTS, rho=0.3, gamma=2.0, strength=0.8),
}
# Averages over the whole batch: its factor must not be that of the rows in a pass.
WEIGHTED = losses.weighted(
    losses.cross_entropy, losses.class_balanced_weights(COUNTS, 0.99), normalise="weights"
)


def trajectory(rule, settings, loss=WEIGHTED, model="mlp", start=None, **changes):
    """(parameters, losses, accuracies) of an epoch's steps, the last of 14 rows."""
    settings = dataclasses.replace(settings, **changes)
    parts = Parts(tiny_dataset(), model, loss, settings, start)
    run_on, order = parts.run_on, parts.order
    inputs, state = run_on.put_inputs(parts.feed.inputs("train")), run_on.put_state(parts.initial)
    calls, seen = {}, []
    stages = Tabled(rule).stages()
    with parts.feed.training(order, [(k, 1) for k in range(order.steps_per_epoch)]) as batches:
        for k, rows in enumerate(batches):
            stage = sum(start <= k for start, _ in stages) - 1
            key = (stage, order.rows_of(k))
            if key not in calls:
                method = stages[stage][1]
                calls[key] = run_on.compile_steps(method, state, inputs, rows)
            state, metrics = calls[key](state, inputs, run_on.place(rows))
            seen.append((float(metrics.loss[0]), float(metrics.accuracy[0])))
    return jax.device_get(state.params), seen


def assert_same(one, other, rtol=1e-5):
    (params, seen), (others, also) = one, other
    np.testing.assert_allclose(seen, also, rtol=rtol)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


# Drawn uniformly, three sizes of each part are compiled: without the last, smaller batch.
@pytest.mark.slow
@pytest.mark.parametrize(("sampling", "batch"), [("natural", 26), ("stratified", 16)])
def test_the_run_is_that_of_dependent_examples(sampling, batch):
    settings = dataclasses.replace(BASE, sampling=sampling, batch_size=batch)
    runs = [
        trajectory(RULES["imbsam"], settings, examples=examples)
        for examples in ("dependent", "independent")
    ]
    assert_same(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["natural", "balanced", "stratified"])
@pytest.mark.parametrize("name", ["imbsam", "sse_sam", "focal_sam"])
def test_so_is_that_of_other_rules(name, sampling):
    runs = [
        trajectory(RULES[name], BASE, sampling=sampling, examples=examples)
        for examples in ("dependent", "independent")
    ]
    assert_same(*runs)


@pytest.mark.slow
def test_frozen_batch_normalisation_lets_examples_be_independent(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TinyNet)
    start = Parts(tiny_dataset(), "tiny", WEIGHTED, BASE).initial.variables()
    start = {**start, "batch_stats": jax.tree.map(lambda x: x + 0.5, start["batch_stats"])}
    more = {"model": "tiny", "start": start, "statistics": "frozen", "sampling": "stratified"}
    runs = [
        trajectory(RULES["imbsam"], BASE, examples=examples, **more)
        for examples in ("dependent", "independent")
    ]
    assert_same(*runs)


@pytest.mark.slow
def test_a_report_says_so_and_counts_what_a_step_costs(tmp_path):
    """The tail is 18 of 78 rows: the dearest branch, the whole batch, is not what a step costs."""
    ratios = {}
    for sampling in ("natural", "stratified"):
        settings = dataclasses.replace(
            BASE, epochs=1, batch_size=26, sampling=sampling, examples="independent"
        )
        report = fit(
            tiny_dataset(), "mlp", RULES["imbsam"], losses.cross_entropy, settings,
            tmp_path / sampling, description={"rule": "imbsam", "rule_args": {}}, quiet=True,
            measure=True,
        )  # fmt: skip
        assert report["examples"] == "independent"
        ratios[sampling] = report["flops_ratio_to_sgd"]
    assert 1.1 < ratios["stratified"] < ratios["natural"] < 1.8


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 1.0}, "--mixup 1 every row is of two classes"),
        ({"accumulate": 2}, "use --accumulate 1, not 2"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    settings = dataclasses.replace(BASE, **{"examples": "independent", **changes})
    settings.check()
    with pytest.raises(RunError, match=message):
        check(Asked(settings, Tabled(RULES["imbsam"])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": "some"}, "unknown examples 'some'; choose from dependent, independent"),
        ({"sampling": "stratify"}, "unknown sampling 'stratify'"),
    ],
)
def test_settings_that_are_none(changes, message):
    with pytest.raises(RunError, match=message):
        dataclasses.replace(BASE, **changes).check()


def test_models_and_stages_that_look_across_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TinyNet)
    settings = dataclasses.replace(BASE, examples="independent")

    def fitted(model, **more):
        rule, about = RULES["imbsam"], {"rule": "imbsam"}
        fit(tiny_dataset(), model, rule, WEIGHTED, settings, out, description=about, **more)

    out = tmp_path / "run"
    with pytest.raises(RunError, match="normalises by the statistics of the whole batch"):
        fitted("tiny")
    with pytest.raises(RunError, match="averages over all rows of a class"):
        fitted("mlp", adversary=Adversary(lambda fn: fn, lambda step: 0.5))
    assert not out.exists()
    with pytest.raises(RunError, match="--sampling stratified: eta must be a finite number"):
        Parts(
            tiny_dataset(), "mlp", WEIGHTED,
            dataclasses.replace(settings, sampling="stratified", eta=float("nan")),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--rule", "cc_sam", "--noise-ratio", "1e-6"],
            "--rule cc_sam takes a batch whole: use --examples dependent",
        ),
        (["--running-statistics", "every"], "use --running-statistics first"),
    ],
)
def test_methods_that_need_every_row(flags, message):
    flags = ["--eta", "10", "--examples", "independent", *flags]
    args, _ = cifar_lt.arguments().parse_known_args(flags)
    args.experiment, args.preset, args.stage2 = "test", None, []
    with pytest.raises(RunError, match=message):
        make_plan(args, tiny_dataset(), {})


def test_a_second_stage_sees_all_rows_again():
    flags = ["--eta", "10", "--examples", "independent", "--sampling", "stratified"]
    args = cifar_lt.arguments().parse_args([*flags, "--stage2", "crt"])
    args.experiment, args.preset = "test", None
    plan = make_plan(args, tiny_dataset(), {})
    assert (plan.settings.examples, plan.settings.sampling) == ("independent", "stratified")
    assert plan.settings.eta == 10 and plan.settings.decisive()["eta"] == 10
    assert plan.second["crt"].settings.examples == "dependent"
    assert "eta" not in dataclasses.replace(plan.settings, sampling="natural").decisive()


def test_a_step_refuses_statistics_that_nobody_checked_for():
    """`make_step` alone, without Parts: silently, the running statistics would stand still."""
    model, dataset = TinyNet(5), tiny_dataset()
    tx = optimizer(lambda _: 0.1, 0.9, 5e-4)
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), np.float32)
    state = jax.eval_shape(
        lambda key: create_state(model, tx, np.zeros((1, 8, 8, 3)), key), jax.random.key(0)
    )
    order = Parts(dataset, "mlp", WEIGHTED, BASE).order
    step = make_step(
        RULES["imbsam"], Objective(WEIGHTED, 5), lambda images, *_: images,
        passing=Passing("independent", room=lambda rows: order.buffers(5, rows)),
    )  # fmt: skip
    rows = Rows(images=images, labels=jax.ShapeDtypeStruct((16,), np.int32))
    with pytest.raises(ValueError, match="normalises by the statistics of the whole batch"):
        jax.eval_shape(
            lambda state, rows: step(state, None, rows, np.arange(16), 16, jax.random.key(0)),
            state, rows,
        )  # fmt: skip


def test_images_that_a_loader_did_not_hold_out_are_not_reported():
    args = cifar_lt.arguments().parse_args(["--eta", "10", "--val-per-class", "3"])
    with pytest.raises(RunError, match="--val-per-class holds images out, and this data set was"):
        make_plan(args, tiny_dataset(), {})
