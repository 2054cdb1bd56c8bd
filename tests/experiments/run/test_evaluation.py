"""Evaluation in batches against NumPy over the whole part; what a step is said to cost."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.host.errors import RunError
from experiments.host.stopping import StopRequest
from experiments.run import cost
from experiments.run.evaluation import Evaluator, Hits
from experiments.run.feeds import Place, make_feed
from experiments.run.one import Run
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step.passing import Passing
from imbsam_jax import losses, rules
from tiny import tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

DATA = tiny_dataset()
SETTINGS = Settings(epochs=1, batch_size=16, lr=0.05)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(DATA, "mlp", losses.cross_entropy, SETTINGS)


def evaluator(parts: Parts, batch: int, data: Any = DATA, feed: Any = None, **options: Any) -> Any:
    return Evaluator(data, feed or parts.feed, parts.run_on, batch, **options)


def again(evaluate: Any, feed: Any, max_corrupt: float = 0.0) -> Any:
    """The same, compiled already, of another feed."""
    other = copy.copy(evaluate)
    other._feed, other._max_corrupt = feed, max_corrupt
    return other


def logits_of(params: Any, images: Any) -> Any:
    x = (images / 255 - np.array(DATA.mean)) / np.array(DATA.std)
    x = x.reshape(len(images), -1)
    for layer in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def by_hand(params: Any, images: Any, labels: Any, flip: bool) -> Hits:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    z = logits_of(params, images)
    if flip:
        z = (z + logits_of(params, images[:, :, ::-1])) / 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    right = labels[z.argmax(axis=1) == labels]
    correct, total = (np.bincount(y, minlength=5) for y in (right, labels))
    return Hits(correct, total, -np.log(p[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize(
    ("batch", "flip"),
    [
        (500, False), (20, False), (20, True), (7, True),
        # Both together are slow where each is quick.
        pytest.param(500, True, marks=pytest.mark.slow),
        pytest.param(7, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_image_counts_once_in_batches_of_any_size(
    parts: Parts, batch: int, flip: bool
) -> None:
    """55 test and 78 training images: also where the last batch is padded."""
    evaluate = evaluator(parts, batch)
    state = evaluate.put_state(parts.initial)
    for part in ("test", "train") if batch == 20 else ("test",):
        images, labels = getattr(DATA, f"{part}_images"), getattr(DATA, f"{part}_labels")
        want = by_hand(parts.initial.params, images, labels, flip)
        got = evaluate.hits(state, part, StopRequest(), flip=flip)
        np.testing.assert_array_equal(got.correct, want.correct)
        np.testing.assert_array_equal(got.total, want.total)
        assert got.loss == pytest.approx(want.loss, rel=1e-5)
    assert 0 < want.correct.sum() < want.total.sum()


def test_five_crops_of_enlarged_images(parts: Parts) -> None:
    """8 pixels resized to 9, of which five parts of 8 are averaged; without, the centre of 10."""
    settings = dataclasses.replace(SETTINGS, enlarged=8, enlarged_eval=10)
    evaluate = Parts(DATA, "mlp", losses.cross_entropy, settings).evaluator
    state, params = evaluate.put_state(parts.initial), parts.initial.params
    images = {
        side: np.asarray(jax.image.resize(DATA.test_images.astype(np.float32),
                                          (55, side, side, 3), "linear"))
        for side in (9, 10)
    }  # fmt: skip
    corners = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]  # its centre is at a half, rounded to 0
    views = [logits_of(params, images[9][:, i : i + 8, j : j + 8]) for i, j in corners]
    for crops, logits in (
        (True, np.mean(views, axis=0)), (False, logits_of(params, images[10][:, 1:9, 1:9])),
    ):  # fmt: skip
        right = DATA.test_labels[logits.argmax(axis=1) == DATA.test_labels]
        found = evaluate.hits(state, "test", StopRequest(), crops=crops)
        np.testing.assert_array_equal(found.correct, np.bincount(right, minlength=5))


class Unreadable:
    """A feed of which the first images cannot be read."""

    def __init__(self, feed: Any, lost: int):
        self._feed, self._lost = feed, np.arange(55) < lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    @contextmanager
    def evaluation(self, part: str, size: int, crops: bool = False) -> Any:
        with self._feed.evaluation(part, size, crops) as batches:
            yield (
                rows._replace(mask=np.asarray(rows.mask) & ~self._lost[np.asarray(rows.index)])
                for rows in batches
            )


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_a_run_ends_with_its_last_state_plain_flipped_and_by_crops(
    ensemble: bool, seen: bool
) -> None:
    """By crops where asked for; plain where no epoch of this process has."""
    run = Run.__new__(Run)
    run.settings = dataclasses.replace(SETTINGS, ensemble=ensemble)
    run._evaluator = SimpleNamespace(hits=lambda *which, **how: (*which, how))
    if seen:
        run.hits = "of the last epoch"
    run.close_training("state", "stop")
    assert run.hits == ("of the last epoch" if seen else ("state", "test", "stop", {}))
    assert run.flipped == ("state", "test", "stop", {"flip": True})
    found = getattr(run, "ensembled", None)
    assert found == (("state", "test", "stop", {"crops": True}) if ensemble else None)


def test_images_that_cannot_be_read_are_left_out_up_to_a_share(parts: Parts) -> None:
    evaluate = evaluator(parts, 20, feed=Unreadable(parts.feed, 3), max_corrupt=3 / 55)
    state = evaluate.put_state(parts.initial)
    got = evaluate.hits(state, "test", StopRequest())
    want = by_hand(parts.initial.params, DATA.test_images[3:], DATA.test_labels[3:], False)
    np.testing.assert_array_equal(got.correct, want.correct)
    assert got.total.tolist() == [8, 11, 11, 11, 11]
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
    four = again(evaluate, Unreadable(parts.feed, 4), 3 / 55)
    with pytest.raises(RunError, match="4 of 55 images of the test set could not be read"):
        four.hits(state, "test", StopRequest())
    with pytest.raises(RunError, match=r"1 of 55 images .* more than the share --max-corrupt 0 a"):
        again(evaluate, Unreadable(parts.feed, 1)).hits(state, "test", StopRequest())


@pytest.mark.parametrize("first", [0, 10])
def test_a_class_without_a_readable_image_is_named(parts: Parts, first: int) -> None:
    """Of eleven images or of one; a class that has none was never there."""
    data = dataclasses.replace(
        DATA, test_images=DATA.test_images[first:], test_labels=DATA.test_labels[first:]
    )
    lost = 11 - first
    feed = make_feed(data, SETTINGS, Place())
    evaluate = evaluator(parts, 20, data, Unreadable(feed, lost), max_corrupt=1.0)
    state = evaluate.put_state(parts.initial)
    with pytest.raises(RunError, match=r"no test image of 1 class \(the first is 0\) could be"):
        evaluate.hits(state, "test", StopRequest())
    absent = dataclasses.replace(data, test_images=data.test_images[lost:],
                                 test_labels=data.test_labels[lost:])  # fmt: skip
    feed = make_feed(absent, SETTINGS, Place())
    found = evaluator(parts, 20, absent, feed).hits(state, "test", StopRequest())
    assert found.total.tolist() == [0, 11, 11, 11, 11]


def test_features_are_of_each_image_and_of_its_mirror_image(parts: Parts) -> None:
    """What the head sees, of all images or of none."""
    evaluate = evaluator(parts, 20)
    state = evaluate.put_state(parts.initial)
    found = evaluate.features(state, "test", StopRequest())
    assert found.shape == (55, 1, 2, 128)
    params = jax.tree.map(np.asarray, parts.initial.params)
    for k, images in enumerate((DATA.test_images, DATA.test_images[:, :, ::-1])):
        logits = found[:, 0, k] @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(logits, logits_of(params, images), rtol=1e-3, atol=1e-4)
    with pytest.raises(RunError, match="1 of 55 images of the test set could not be read, and fea"):
        again(evaluate, Unreadable(parts.feed, 1)).features(state, "test", StopRequest())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_is_answered_between_batches_where_one_process_evaluates(
    parts: Parts, processes: int
) -> None:
    """Several would stop at different ones, and wait for each other."""
    evaluate = evaluator(parts, 20)
    evaluate._run_on = SimpleNamespace(
        processes=processes, devices=parts.run_on.devices, place=lambda rows: rows,
        put_inputs=lambda inputs: inputs,
    )  # fmt: skip
    asked: list[bool] = []
    stop: Any = SimpleNamespace(check=lambda: asked.append(True))
    assert len(list(evaluate._batches("test", stop))) == 3
    assert len(asked) == (3 if processes == 1 else 0)


@pytest.mark.parametrize(("batch", "size"), [(20, 20), (18, 20), (500, 56), (1, 4)])
def test_a_batch_is_shared_by_all_devices_and_no_larger_than_the_part(
    parts: Parts, batch: int, size: int
) -> None:
    evaluate = evaluator(parts, batch)
    evaluate._run_on = SimpleNamespace(
        processes=1, devices=[None] * 4, place=lambda rows: rows, put_inputs=lambda inputs: inputs
    )
    stop: Any = SimpleNamespace(check=lambda: None)
    found = [rows for _, rows in evaluate._batches("test", stop)]
    assert {rows.index.shape for rows in found} == {(1, size)}
    assert sum(int(rows.mask.sum()) for rows in found) == 55


def test_accuracies_are_means_over_classes_that_were_trained_on(parts: Parts) -> None:
    """Counts 40 20 | 10 | 5 3: many above 15, few below 6; each class by its own examples."""
    hits = Hits(np.array([10, 4, 3, 1, 0]), np.array([10, 8, 12, 4, 5]), 0.0)
    found = evaluator(parts, 20).accuracies(hits)
    want = {"all": 40.0, "many": 75.0, "medium": 25.0, "few": 12.5}
    assert found == pytest.approx(want, rel=1e-6)
    absent = dataclasses.replace(
        DATA,
        train_images=DATA.train_images[DATA.train_labels != 2],
        train_labels=DATA.train_labels[DATA.train_labels != 2],
    )
    with jax.debug_nans(True):  # that a group has no class is no fault
        found = evaluator(parts, 20, data=absent).accuracies(hits)
    assert found.pop("medium") is None
    assert found == pytest.approx({"all": 43.75, "many": 75.0, "few": 12.5}, rel=1e-6)


# ---- cost -------------------------------------------------------------------------------------


class Compiled:
    """A step that costs what it is said to."""

    def __init__(self, flops: float, as_list: bool = False):
        self._found: Any = {"flops": flops}
        self._found = [self._found] if as_list else self._found

    def cost_analysis(self) -> Any:
        return self._found


@pytest.mark.parametrize("as_list", [False, True])
def test_flops_are_those_that_xla_counts(as_list: bool) -> None:
    assert cost.flops(Compiled(12.0, as_list)) == 12
    x = jnp.ones((8, 16))
    one = jax.jit(lambda x: x @ x.T).lower(x).compile()
    assert cost.flops(one) == pytest.approx(2 * 8 * 8 * 16, rel=0.01)
    nothing = Compiled(0)
    nothing._found = None
    assert np.isnan(cost.flops(nothing))


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        # Tail rows of the batches are 1, 2, 2 and 3: rooms of 1, 3, 3 and 3, or of 2 and 2 ...
        ((1, 3, 8), [1, 3, 3, 3]),
        ((2, 8), [2, 2, 2, 8]),
        ((0, 2), [1, 2, 2, 2]),  # a room of 0 is one of 1, and the largest is taken at least
        ((4,), [4, 4, 4, 4]),
        ((99, 2), [2, 2, 2, 8]),  # in any order, and none larger than the batch
    ],
)
def test_a_step_that_chooses_among_buffers_costs_their_mean(sizes: Any, want: Any) -> None:
    """Each choice compiled alone, weighted by how often it is made."""
    batches = [np.array([1] * tail + [0] * (8 - tail)) for tail in (1, 2, 2, 3)]
    tail = np.array([False, True])
    asked = []

    def compiled(room: Any) -> Compiled:
        buffers = room(8)
        found = [int(size) for size in buffers(tail)]
        asked.append(found)
        return Compiled(100.0 * max(found) + 1)

    call, mean = cost.counted(compiled, lambda rows: lambda classes: sizes, batches)
    assert mean == pytest.approx(100 * np.mean(want) + 1)
    assert call.cost_analysis()["flops"] == 100 * max(asked[0]) + 1
    # One program for the step, and one for each choice where there are several.
    assert len(asked) == (1 if len(set(asked[0])) == 1 else 1 + len(set(want)))


def test_where_every_pass_sees_the_batch_the_step_alone_is_counted() -> None:
    rooms = []
    call, found = cost.counted(lambda room: rooms.append(room) or Compiled(7.0), None, [])
    assert (rooms, found, cost.flops(call)) == ([None], 7.0, 7.0)


class Devices:
    """Steps that cost what they are said to, by a clock of their own.

    As in Jit: on the host an uncompiled step counts the work of all devices.
    """

    processes = 1

    def __init__(self, clock: list[float], platform: str, axis_name: Any, passing: Passing):
        self.devices = [SimpleNamespace(platform=platform), SimpleNamespace(platform="tpu")]
        self.axis_name, self.passing, self.apart = axis_name, passing, 3
        self.clock, self.done, self.seconds = clock, [], iter([64.0, *range(1, 200)])

    def passing_by(self, passing: Passing) -> Any:
        there = copy.copy(self)
        there.passing = passing
        return there

    def put_state(self, state: str) -> str:
        return f"{state} there"

    def place(self, rows: str) -> str:
        return f"{rows} there"

    def lower_on_host(self, method: Any, state: str, inputs: str, rows: str) -> Compiled:
        assert (method, state, inputs, rows) == ("sgd", "state there", "inputs", "rows")
        self.done.append(("lowered", self.passing.micro_batches))
        return Compiled(40.0)

    def compile_steps(self, method: Any, state: str, inputs: str, rows: str) -> Any:
        assert (method, state, inputs, rows) == ("sgd", "state there", "inputs", "rows")
        self.done.append(("compiled", self.passing.micro_batches))
        step = Step(self)
        step.cost_analysis = Compiled(20.0).cost_analysis  # type: ignore[attr-defined]
        return step


class Step:
    """A compiled call; the clock goes on as its result is waited for."""

    def __init__(self, on: Devices):
        self.on, self.calls = on, 0

    def __call__(self, state: str, inputs: str, placed: str) -> Any:
        assert (state, inputs, placed) == ("state there", "inputs", "rows there")
        self.calls += 1
        return state, self

    def block_until_ready(self) -> None:
        self.on.clock[0] += next(self.on.seconds)


def _lone_step(
    monkeypatch: pytest.MonkeyPatch, seconds: float, platform: str = "cpu", axis_name: Any = None,
    passing: Passing = Passing(), host: bool = True, processes: int = 1,
) -> tuple[Any, Devices]:  # fmt: skip
    """What a step costs there, whose first call takes 64 seconds and the others 1, 2, 3 ..."""
    clock = [1000.0]

    def local_devices(backend: str) -> list[str]:
        if not host:
            raise RuntimeError("no CPU")
        return [backend]

    def labels_of(steps: int, parts: int) -> list[Any]:
        assert (steps, parts) == (1000, 3)
        return [np.zeros(4, int)]

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(jax, "local_devices", local_devices)
    run_on: Any = Devices(clock, platform, axis_name, passing)
    run_on.processes = processes
    order: Any = SimpleNamespace(labels_of=labels_of)
    args: Any = (run_on, "sgd", "state", "inputs", "rows", order, seconds)
    return cost.lone_step(*args), run_on


@pytest.mark.parametrize(
    ("seconds", "processes", "milliseconds"),
    [
        (1e-9, 1, 2000),  # the first three but the very first, whatever they take
        (70.0, 1, 2000),  # 64 + 1 + 2 + 3 are as many
        (70.5, 1, 2500),
        (74.0, 1, 2500),
        (74.5, 1, 3000),
        (1e9, 1, 50_000),  # of a hundred
        (1e9, 2, 2000),  # all processes make equally many
    ],
)
def test_a_step_is_timed_for_so_long(
    seconds: float, processes: int, milliseconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, found), _ = _lone_step(monkeypatch, seconds, processes=processes)
    assert found == milliseconds


@pytest.mark.parametrize(
    ("where", "flops", "done"),
    [
        ({}, 20, [("compiled", 1)]),
        ({"passing": Passing(micro_batches=2)}, 20, [("compiled", 1), ("compiled", 2)]),
        # Of a GPU on the host: the work of both devices, by micro-batches or not; not of pmap.
        ({"platform": "gpu"}, 20, [("lowered", 1), ("compiled", 1)]),
        ({"platform": "gpu", "passing": Passing(micro_batches=4)}, 20,
         [("lowered", 1), ("compiled", 4)]),
        ({"platform": "gpu", "axis_name": "batch"}, 20, [("compiled", 1)]),
        ({"platform": "gpu", "host": False}, 20, [("compiled", 1)]),
    ],
)  # fmt: skip
def test_what_is_counted_is_compiled_without_a_loop(
    where: Any, flops: float, done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed is the step as it is made; it is not compiled again where none is timed."""
    (found, _), run_on = _lone_step(monkeypatch, 1e-9, **where)
    assert found == flops and run_on.done == done
    (found, none), run_on = _lone_step(monkeypatch, 0, **where)
    assert found == flops and np.isnan(none) and run_on.done == done[:1]


def test_a_lone_step_is_counted_and_timed(parts: Parts) -> None:
    """FLOPs of a matrix product forward and two backward, and some milliseconds."""
    inputs = parts.run_on.put_inputs(parts.feed.inputs("train"))
    with parts.feed.training(parts.order, [(0, 1)]) as batches:
        rows = next(batches)
    before = jax.tree.map(np.asarray, parts.initial.params)
    found, time_ms = cost.lone_step(
        parts.run_on, rules.sgd(5), parts.initial, inputs, rows, parts.order, 1e-9
    )
    products = 16 * (192 * 128 + 128 * 128 + 128 * 5)
    # No gradient reaches the images; the rest is what is neither product nor parameter.
    least = 2 * (3 * products - 16 * 192 * 128)
    assert least < found < 1.5 * least
    assert 0 < time_ms < 60_000
    jax.tree.map(np.testing.assert_array_equal, before, parts.initial.params)
    flops, none = cost.lone_step(
        parts.run_on, rules.sgd(5), parts.initial, inputs, rows, parts.order, 0
    )
    assert flops == found and np.isnan(none)
