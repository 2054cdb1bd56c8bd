"""The digits bench against a loop over epochs and batches, written out for one seed at a time."""

from __future__ import annotations

import dataclasses
import time
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import training
from experiments.bench.training import Bench, Job, Setup
from experiments.data.digits import load_digits_lt
from experiments.host.errors import Diverged, RunError
from experiments.run.settings import Settings
from experiments.step.methods import Tabled
from experiments.step.objectives import Objective
from imbsam_jax import losses, rules

SEEDS = [3, 8]
RHO = 0.1
# Two whole batches and a smaller one an epoch; nothing but the gradient moves the parameters.
SETUP = Setup(
    epochs=3, batch_size=120, lr=0.05, schedule="constant", momentum=0.0, weight_decay=0.0
)


def test_a_setup_is_of_a_runs_settings() -> None:
    given = {"epochs": 3, "batch_size": 120, "lr": 0.05, "schedule": "constant", "momentum": 0.0}
    settings = Settings(**given, weight_decay=0.5, sampling="stratified")
    assert Setup.of(settings) == SETUP._replace(weight_decay=0.5, sampling="stratified")
    inside = dataclasses.replace(settings, sampling="natural", weight_decay_inside=True)
    assert Setup.of(inside, np.array([False, True])) == SETUP._replace(tail=(False, True))


def test_what_a_setup_is_without_a_word_of_it() -> None:
    """As digits_lt and sweep train: SGD with momentum 0.9, the rate falling as a cosine."""
    plain = Setup(3, 120, 0.05)
    assert plain == Setup(
        epochs=3, batch_size=120, lr=0.05, schedule="cosine", momentum=0.9, weight_decay=0.0,
        sampling="natural", per_visit=1, tail=(), trained="all", classifier="linear",
        max_norm="none",
    )  # fmt: skip


@pytest.mark.parametrize("seeds", [[-1, 0], [0, 2**32]])
def test_seeds_that_are_none_are_refused_before_anything_is_loaded(seeds: Any) -> None:
    with pytest.raises(RunError):
        Bench([None, None], seeds)


# SGD for the first epoch of three steps, then SAM.
RULE = rules.stagewise(rules.sgd(10), rules.sam(10, rho=RHO), switch_step=3)
JOB = Job("staged", Tabled(RULE), Objective(losses.cross_entropy, 10), SETUP)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EPOCHS_PER_CALL", 2)
        yield Bench([load_digits_lt(50, seed) for seed in SEEDS], SEEDS)


@pytest.mark.parametrize(
    ("span", "calls"),
    [
        ((0, 5), [(0, 0, 2), (1, 2, 3), (2, 3, 5)]), ((0, 1), [(0, 0, 1)]), ((1, 2), [(0, 1, 2)]),
        ((2, 4), [(1, 2, 3), (2, 3, 4)]), ((3, 4), [(2, 3, 4)]), ((0, 0), [(0, 0, 0)]),
        ((99, 120), [(2, 99, 120)]),
    ],
)  # fmt: skip
def test_epochs_are_cut_where_the_method_changes(span: Any, calls: Any) -> None:
    """In the third and the fourth epoch; none at all are one call, which only evaluates."""
    method = types.SimpleNamespace(stages=lambda: [(0, "a"), (12, "b"), (20, "c")])
    program = types.SimpleNamespace(job=types.SimpleNamespace(method=method), steps_per_epoch=6)
    assert training._Program._cut(program, *span) == tuple(calls)  # type: ignore[arg-type]


TAIL = tuple(n <= 20 for n in (100, 64, 41, 27, 17, 11, 7, 4, 3, 2))


@pytest.mark.parametrize("sampling", ["natural", "balanced", "stratified"])
def test_each_seed_and_epoch_has_an_order_of_its_own(bench: Bench, sampling: str) -> None:
    setup = SETUP._replace(sampling=sampling, tail=TAIL if sampling == "stratified" else ())
    orders = np.asarray(bench.orders(setup, 0, 3))
    assert orders.shape == (2, 3, bench.rows) and orders.dtype == np.int32
    flat = orders.reshape(6, -1)
    assert len({row.tobytes() for row in flat}) == 6
    # Wherever a call begins.
    np.testing.assert_array_equal(bench.orders(setup, 1, 4)[:, :2], orders[:, 1:])
    assert bench.orders(setup, 2, 2).shape == (2, 0, bench.rows)
    labels = np.asarray(bench.train_set.labels)
    if sampling == "balanced":
        for of_seed, own in zip(orders, labels, strict=True):
            for order in of_seed:
                drawn = np.bincount(own[order], minlength=10)
                assert drawn.max() - drawn.min() <= 1
        return
    np.testing.assert_array_equal(np.sort(flat, axis=1), [np.arange(bench.rows)] * 6)
    if sampling == "stratified":
        for of_seed, own in zip(orders, labels, strict=True):
            shares = np.array(TAIL)[own[of_seed[:, :240].reshape(-1, 40)]].sum(axis=1)
            assert shares.max() - shares.min() <= 1


@pytest.fixture(scope="module")
def begun(bench: Bench) -> Any:
    return jax.device_get(bench.fresh())


def logits_of(params: Any, images: Any) -> Any:
    x = images.reshape(len(images), -1) / 16
    for layer in ("hidden_0", "hidden_1"):
        x = jnp.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


_LOGITS = jax.jit(logits_of)


def cross_entropy(params: Any, images: Any, labels: Any, shares: Any) -> Any:
    logits = logits_of(params, images)
    return shares @ (jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(labels)), labels])


@jax.jit
def gradient(params: Any, rho: Any, *batch: Any) -> Any:
    """(loss at theta, gradient at theta + e): by the definition, of length rho; SGD's is of 0."""
    loss, d = jax.value_and_grad(cross_entropy)(params, *batch)
    length = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(d)))
    point = jax.tree.map(lambda p, g: p + rho * g / length, params, d)
    return loss, jax.grad(cross_entropy)(point, *batch)


def percent(params: Any, images: Any, labels: Any) -> tuple[Any, Any, float]:
    """(correct of each class, examples of each class, mean of their shares in percent)."""
    right = labels[np.argmax(_LOGITS(params, np.float32(images)), -1) == labels]
    correct, total = (np.bincount(y, minlength=10) for y in (right, labels))
    return correct, total, 100 * (correct / total).mean()


@pytest.mark.allow_rank_promotion
def test_a_job_is_a_loop_over_epochs_and_batches(
    bench: Bench, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, counts and parameters; SGD's first epoch and SAM's other two, evaluated twice."""
    assert -(-bench.rows // 120) == 3
    told: list[tuple[int, float]] = []
    compiled: list[Any] = []
    monkeypatch.setattr(training.Counted, "advance", lambda self, *of: told.append(of))
    monkeypatch.setattr(training.Counted, "compiling", lambda self, *of: compiled.append(of))
    began = time.perf_counter()
    curve, found = bench.train([JOB])["staged"]
    epochs, seconds = map(sum, zip(*told, strict=True))
    assert compiled == [(1, 1)]
    assert epochs == JOB.setup.epochs and 0 < seconds <= time.perf_counter() - began
    assert curve.epochs == [2, 3] and (curve.seconds > 0).all()
    val = bench.validate(found)
    train, test, held = jax.device_get((bench.train_set, bench.test_set, bench.val_set))
    for number, seed in enumerate(SEEDS):
        params = jax.tree.map(lambda leaf, k=number: leaf[k], begun)
        told_of = []
        for epoch in range(3):
            order = np.random.default_rng([seed, epoch]).permutation(bench.rows)
            total = 0.0
            for start in range(0, bench.rows, 120):
                rows = order[start : start + 120]
                # The smaller batch is filled with rows without a share: one program for all.
                shares = np.float32(np.arange(120) < len(rows)) / np.float32(len(rows))
                seen = np.resize(rows, 120)
                images = np.float32(train.images[number][seen])
                batch = images, train.labels[number][seen], shares
                loss, grads = gradient(params, np.float32(RHO * (epoch > 0)), *batch)
                params = jax.tree.map(
                    lambda p, g: p - np.float32(0.05) * g, params, jax.device_get(grads)
                )
                total += len(rows) * float(loss)
            if epoch == 0:
                continue
            np.testing.assert_allclose(curve.loss[epoch - 1, number], total / bench.rows, rtol=1e-4)
            hits, counts, share = percent(params, test.images[number], test.labels[number])
            told_of.append(share)
        # A prediction or two may hang on rounding.
        np.testing.assert_allclose(curve.splits["all"][:, number], told_of, atol=0.5)
        np.testing.assert_array_equal(curve.total[number], counts)
        assert np.abs(curve.correct[number] - hits).sum() <= 2
        assert abs(told_of[1] - told_of[0]) > 1, "the evaluations cannot be told apart"
        *_, share = percent(params, held.images[number], held.labels[number])
        np.testing.assert_allclose(val["all"][number], share, atol=0.5)
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(got[number], want, rtol=1e-3, atol=1e-5)


@pytest.mark.allow_rank_promotion
def test_a_loss_that_is_not_finite_names_job_epoch_and_seed(bench: Bench, begun: Any) -> None:
    broken = jax.tree.map(lambda leaf: np.stack([leaf[0], leaf[1] * np.nan]), begun)
    found = bench.train([JOB._replace(params=broken)])["staged"]
    assert isinstance(found, Diverged)
    assert str(found).startswith("staged: the loss is not finite by epoch 1 (step 3, seed 8)")


def test_a_curve_is_of_every_evaluation_and_counts_of_the_last() -> None:
    def accuracies(correct: Any, total: Any) -> Any:
        return {"all": 100 * correct / total, "few": correct}

    program = training._Program.__new__(training._Program)
    program.bench = types.SimpleNamespace(accuracies=accuracies)  # type: ignore[assignment]
    program.seen = [(np.full(2, k), np.array([k, 9]), np.array([10, 10 + k]), k) for k in range(4)]
    curve = program.curve([2, 4, 6, 7])
    assert curve.epochs == [2, 4, 6, 7] and curve.seconds.tolist() == [0, 1, 2, 3]
    assert curve.loss.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert curve.correct.tolist() == [3, 9] and curve.total.tolist() == [10, 13]
    assert curve.splits.keys() == {"all", "few"}
    assert curve.splits["few"].tolist() == [[k, 9] for k in range(4)]
    np.testing.assert_allclose(curve.splits["all"][2], [20, 75])


def test_classifiers_have_parameters_of_their_own(bench: Bench, begun: Any) -> None:
    cosine = jax.eval_shape(lambda: bench.fresh("cosine"))
    assert begun["head"].keys() == {"kernel", "bias"} != cosine["head"].keys()


def test_another_draw_gives_other_parameters(bench: Bench, begun: Any) -> None:
    first, (again, other) = begun, jax.device_get([bench.fresh(draw=draw) for draw in (0, 1)])
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.ndim == 2 or ((a[0] != a[1]).any() and (a != c).any())  # biases are 0


@pytest.mark.parametrize(("max_norm", "every"), [("none", 0), ("step", 1), ("epoch", 3)])
def test_the_optimizer_is_that_of_the_setup(
    bench: Bench, max_norm: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once of each: a compiled program knows its states by it."""
    given: list[Any] = []
    monkeypatch.setattr(training, "learning_rate", lambda *of: of)
    monkeypatch.setattr(training, "optimizer", lambda *of, **more: given.append((of, more)) or of)
    monkeypatch.setattr(bench, "_parts", {})
    setup = SETUP._replace(
        schedule="cosine", lr=0.3, momentum=0.7, weight_decay=0.02, max_norm=max_norm,
        classifier="cosine",
    )  # fmt: skip
    model, tx = bench.model_and_optimizer(setup)
    assert given == [((("cosine", 0.3, 3, 3), 0.7, 0.02), {"max_norm_every": every})]
    again = bench.model_and_optimizer(setup._replace())
    assert again[0] is model and again[1] is tx and model.classifier == "cosine"


def test_seconds_are_of_an_epoch_and_all_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0, 20.0, 22.0])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    orders, program = [], training._Program.__new__(training._Program)
    program.bench = types.SimpleNamespace(  # type: ignore[assignment]
        seeds=SEEDS, train_set=None, test_set=None, keys=None,
        orders=lambda setup, low, high: orders.append((low, high)),
    )  # fmt: skip
    program.job, program.seen, program.states = JOB, [], "at first"

    def call(epochs: int) -> Any:
        def made(states: Any, numbers: Any, *data: Any) -> Any:
            return f"{states}, {numbers}", (np.full(2, epochs), "correct", "total")

        return made

    monkeypatch.setattr(program, "_cut", lambda start, end: ((0, 2, 4), (1, 4, 5)))
    monkeypatch.setattr(program, "_numbers", lambda stage: f"stage {stage}")
    program._calls = {(0, 2): call(2), (1, 1): call(1)}
    program.advance(2, 5)
    ((losses, correct, total, seconds),) = program.seen
    assert orders == [(2, 4), (4, 5)] and program.states == "at first, stage 0, stage 1"
    assert losses.tolist() == [1, 1] and (correct, total) == ("correct", "total")
    assert seconds == (4 + 2) / 3
    clock = iter([50.0, 57.0])  # of one epoch, and of none
    monkeypatch.setattr(program, "_cut", lambda start, end: ((1, start, end),))
    program._calls[1, 0] = call(0)
    program.advance(5, 6)
    assert program.seen[-1][-1] == 7
    clock = iter([60.0, 62.5])
    program.advance(0, 0)
    assert program.seen[-1][-1] == 2.5
