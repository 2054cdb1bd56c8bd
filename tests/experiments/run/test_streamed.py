"""The trainer on images that are read while it trains: its path, its stops and its faults."""

import dataclasses
import gc
import json
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_records
from experiments.data import DataError, filled
from experiments.data.augment import colour_jitter, flip
from experiments.data.decode import decode_eval
from experiments.data.encoded import check_no_empty_class
from experiments.data.image_sets import load_inaturalist
from experiments.host.errors import RunError, Stopped
from experiments.run import feeds
from experiments.run.checkpoints import Checkpoints
from experiments.run.fit import fit
from experiments.run.one import Run, params_sha256
from experiments.run.parts import Parts, last_variables
from experiments.run.settings import Settings
from experiments.step.step import Rows
from imbsam_jax import rules
from imbsam_jax.losses import cross_entropy

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

QUICK = Settings(epochs=2, batch_size=16, lr=0.05, eval_batch=10, checkpoint_every=1)
SIZE, RESIZE = 16, 18


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Scanned labels are kept beside the tests, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_records.make(tmp_path_factory.mktemp("whole"), largest=30, smallest=2)


@pytest.fixture(scope="module")
def dataset(made):
    return load_inaturalist(str(made.folder), size=SIZE, resize=RESIZE)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    made = tiny_records.make(tmp_path_factory.mktemp("broken"), largest=30, smallest=2, corrupt=3)
    return load_inaturalist(str(made.folder), size=SIZE, resize=RESIZE)


def test_views_are_cut_of_a_square_around_the_image(dataset):
    """Five of 16 pixels, in corners and centre of 17; else the image is as without."""
    feed = Parts(dataset, "mlp", cross_entropy, QUICK).feed
    with feed.evaluation("test", 4, crops=True) as batches:
        images = next(batches).images[0]
    assert images.shape == (4, SIZE + 1, SIZE + 1, 3)
    file = dataset.test.read([2])[0]
    np.testing.assert_array_equal(images[2], decode_eval(file, SIZE + 1, SIZE + 1))
    views = feed.crops(jnp.asarray(images))
    np.testing.assert_array_equal(views[3], feed.plain(jnp.asarray(images))[:, 1:, 1:])
    assert len(views) == 5


def run(out, dataset, rule=None, settings=QUICK, **options):
    rule = rule or rules.imbsam(filled(dataset.class_counts()), rho=0.1, eta=10)
    description = {"experiment": "test", "rule": "imbsam", "rule_args": {}}
    options = {"description": description, "quiet": True, **options}
    return fit(dataset, "mlp", rule, cross_entropy, settings, out, **options)


def at_once(dataset, **changes):
    """One epoch of one step: of one size, and so one program."""
    return dataclasses.replace(QUICK, epochs=1, batch_size=len(dataset.train_labels), **changes)


def final_params(out, dataset, settings):
    checkpoints = Checkpoints(out / "checkpoints")
    state, _ = checkpoints.restore(Parts(dataset, "mlp", cross_entropy, settings).initial)
    checkpoints.close()
    return state.params


def test_a_call_of_streamed_images_is_one_step(dataset, tmp_path, monkeypatch):
    """However many are asked for: the images of more would lie in memory at once."""
    calls = []

    def train(self, *_):
        calls.extend(self.calls.of_epoch(0))
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.run.trainer.Trainer.train", train)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dataset, settings=dataclasses.replace(QUICK, steps_per_call=50))
    assert len(calls) == -(-len(dataset.train_labels) // 16) > 1
    assert {call.steps for call in calls} == {1}


@pytest.mark.slow  # quickly: arrays are trained so in test_train.py; streams are in data/
@pytest.mark.parametrize("kind", ["dataset", "broken"])
def test_the_path_is_that_of_a_plain_loop(kind, request, tmp_path):
    """SGD by hand over the trainer's order; a file that cannot be read is left out of its batch."""
    dataset = request.getfixturevalue(kind)
    settings = dataclasses.replace(
        QUICK, augment=False, schedule="constant", max_corrupt=0.1, workers=0
    )
    parts = Parts(dataset, "mlp", cross_entropy, settings)
    params = jax.device_get(parts.initial.params)
    apply, count = parts.initial.apply_fn, len(dataset.train_labels)

    def loss(params, x, y):
        logits = apply({"params": params}, x, train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    velocity, left_out = jax.tree.map(np.zeros_like, params), 0
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(count)
        for start in range(0, count, 16):
            rows = order[start : start + 16]
            seen = [decode_eval(data, SIZE, RESIZE) for data in dataset.train.read(rows.tolist())]
            good = [i for i, image in enumerate(seen) if image is not None]
            left_out += len(rows) - len(good)
            images = np.stack([seen[i] for i in good]).astype(np.float32)
            images = ((images / 255 - dataset.mean) / dataset.std).astype(np.float32)
            g = jax.grad(loss)(params, images, dataset.train_labels[rows[good]])
            velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-3 * p, velocity, g, params)
            params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    assert left_out == (6 if kind == "broken" else 0)
    report = run(tmp_path / "run", dataset, rules.sgd(dataset.num_classes), settings)
    found = final_params(tmp_path / "run", dataset, settings)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [left_out // 2] * 2
    assert report["skipped_test_images"] == 0
    assert report["seconds_waiting"] >= 0


FIRST_UNREADABLE = r"could not be read \(the first is record \d+ of train\), more than"


def test_too_many_unreadable_images_stop_the_run(broken, tmp_path):
    sgd, strict = rules.sgd(broken.num_classes), at_once(broken, max_corrupt=0.01)
    with pytest.raises(RunError, match=f"^3 training images of epoch 1 {FIRST_UNREADABLE}"):
        run(tmp_path, broken, sgd, strict)


@pytest.mark.slow  # of an evaluation alone it is quick in test_evaluation.py
def test_too_many_unreadable_test_images_stop_the_run(broken, tmp_path):
    swapped = dataclasses.replace(broken, train=broken.test, test=broken.train)
    sgd, strict = rules.sgd(broken.num_classes), at_once(swapped, max_corrupt=0.01)
    with pytest.raises(RunError, match=rf"3 of \d+ images of the test set {FIRST_UNREADABLE}"):
        run(tmp_path, swapped, sgd, strict)


# ---- stops ----------------------------------------------------------------------------------


# Inside an epoch; at its last step, so that the stop is answered while it is evaluated. A full
# disk stops one, too, and is quick.
@pytest.mark.slow
@pytest.mark.parametrize(("at", "before", "after"), [(1, 1, 2), (-1, 1, 0)])
def test_a_stopped_run_ends_bitwise_where_an_unstopped_one_does(
    at, before, after, dataset, tmp_path, monkeypatch
):
    """Whatever the number of workers, before the stop and after it."""
    settings = dataclasses.replace(QUICK, jitter=0.4)
    whole = run(tmp_path / "whole", dataset, settings=settings)["params_sha256"]
    plain = Run.see
    at %= -(-len(dataset.train_labels) // 16)

    def see(self, first_step, *rest):
        if first_step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, first_step, *rest)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "see", see)
        with pytest.raises(Stopped) as stopped:
            run(out, dataset, settings=dataclasses.replace(settings, workers=before))
    assert stopped.value.exit_code == 143
    resumed = dataclasses.replace(settings, workers=after)
    assert run(out, dataset, settings=resumed, resume=True)["params_sha256"] == whole
    trained, _ = last_variables(out, dataset, "mlp", settings)  # for a second stage
    assert params_sha256(trained["params"]) == whole


@pytest.mark.slow
def test_balanced_sampling_reads_every_class_alike(dataset, tmp_path):
    """Drawn in a worker as in this process."""
    settings = dataclasses.replace(QUICK, sampling="balanced", epochs=1)
    found = [
        run(tmp_path / f"{n}", dataset, settings=dataclasses.replace(settings, workers=n))
        for n in (0, 1)
    ]
    assert found[0]["params_sha256"] == found[1]["params_sha256"]
    order = Parts(dataset, "mlp", cross_entropy, settings).order
    rows = np.concatenate([order.of_step(step) for step in range(order.steps_per_epoch)])
    seen = np.bincount(dataset.train_labels[rows], minlength=dataset.num_classes)
    assert seen.max() - seen.min() <= 1


# ---- micro-batches --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["imbsam", "sse_sam"])
def test_accumulation_changes_no_number(dataset, tmp_path, rule):
    counts = dataset.class_counts()
    rule = {
        "imbsam": rules.imbsam(counts, rho=0.1, eta=10),
        "sse_sam": rules.sse_sam(counts, head_rho=0.05, tail_rho=0.1, eta=10, switch_step=3),
    }[rule]
    params = []
    for parts in (1, 4):
        settings = dataclasses.replace(QUICK, accumulate=parts, jitter=0.4)
        run(tmp_path / f"{parts}", dataset, rule, settings)
        params.append(final_params(tmp_path / f"{parts}", dataset, settings))
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_cut_is_refused(dataset, tmp_path):
    with pytest.raises(RunError, match=r"16 .* --accumulate 3: use a multiple of 3"):
        run(tmp_path, dataset, settings=dataclasses.replace(QUICK, accumulate=3))


# ---- classes --------------------------------------------------------------------------------


def test_a_class_without_an_image_is_named_or_left_out(tmp_path):
    made = tiny_records.make(tmp_path / "data", largest=30, smallest=2, empty=(2,))
    dataset = load_inaturalist(str(made.folder), size=SIZE, resize=RESIZE)
    with pytest.raises(DataError, match="1 of 8 classes have no training image: 2"):
        check_no_empty_class(dataset, allow=False)
    check_no_empty_class(dataset, allow=True)
    report = run(tmp_path / "run", dataset, settings=at_once(dataset))
    rows = (tmp_path / "run" / "per_class.csv").read_text().splitlines()[1:]
    columns = [row.split(",") for row in rows]
    assert columns[2][2] == "0"
    assert np.mean([float(c[-1]) for i, c in enumerate(columns) if i != 2]) == pytest.approx(
        report["all"], abs=1e-3
    )


def test_every_image_counts_once_and_none_twice(dataset):
    """Of every part, whatever the batch, over all processes."""
    order = feeds.InTurn(23, 8)
    places = [feeds.Place(4, 2, process) for process in range(2)]
    seen = []
    for step in range(order.steps):
        for place in places:
            mine = feeds.Mine(order, place)
            rows, positions = mine(step)
            assert len(rows) == 4 and (rows >= 0).all()
            assert positions[0] == 4 * place.process
            real = mine.real(step)
            seen += rows[real].tolist()
            # Padding repeats the first row of the whole batch, not of this process's part.
            assert (rows[~real] == 8 * step).all()
    assert sorted(seen) == list(range(23))


# ---- on the device --------------------------------------------------------------------------


def test_flips_depend_on_the_position_alone():
    images = jnp.arange(6 * 2 * 3 * 1).reshape(6, 2, 3, 1)
    key = jax.random.key(1)
    found = np.asarray(flip(images, jnp.arange(6), 6, key))
    flips = np.asarray(jax.random.bernoulli(key, 0.5, (6,)))
    assert flips.any() and not flips.all()
    expected = np.where(flips[:, None, None, None], np.asarray(images)[:, :, ::-1], images)
    np.testing.assert_array_equal(found, expected)
    part = flip(images[jnp.array([5, 2])], jnp.array([5, 2]), 6, key)
    np.testing.assert_array_equal(part, expected[[5, 2]])


def test_colour_jitter_is_pillows():
    """Factors and order as drawn for a row's position, each step by Pillow, which rounds after."""
    from PIL import Image, ImageEnhance

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 12, 9, 3)).astype(np.uint8)
    key, at = jax.random.key(2), np.array([3, 0, 4, 1, 2])

    @jax.jit
    def drawn(key, images):
        factor_key, order_key = jax.random.split(key)
        orders = [jax.random.permutation(k, 3) for k in jax.random.split(order_key, 5)]
        factors = jax.random.uniform(factor_key, (5, 3), minval=0.6, maxval=1.4)
        jittered = [colour_jitter(images, at, 5, key, by) for by in (0.4, 0.0)]
        return factors, orders, jittered

    factors, orders, (found, none) = jax.device_get(drawn(key, images))
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors, orders = factors[at], [orders[k].tolist() for k in at]
    assert len({tuple(order) for order in orders}) > 1
    grey_of = np.array([299, 587, 114]) / 1000
    for image, factor, order, seen in zip(images, factors, orders, found, strict=True):
        picture, exact = Image.fromarray(image), image.astype(np.float64)
        for kind in order:
            picture = enhance[kind](picture).enhance(float(factor[kind]))
            grey = (exact @ grey_of)[..., None]
            other = (np.zeros(1), grey.mean(), grey)[kind]
            exact = np.clip(factor[kind] * exact + (1 - factor[kind]) * other, 0, 255)
        np.testing.assert_allclose(seen, exact, atol=1e-2)
        # Pillow cuts off the fraction three times, 1.4 times what came before, and rounds greys.
        assert np.abs(np.asarray(picture, np.float32) - seen).max() <= 1 + 1.4 + 1.4**2 + 0.4
    np.testing.assert_allclose(none, images, atol=1e-3)


def test_a_batch_of_nothing_but_broken_images_changes_weight_decay_alone(dataset):
    parts = Parts(dataset, "mlp", cross_entropy, QUICK)
    rule = rules.imbsam(dataset.class_counts(), rho=0.1, eta=10)
    rows = Rows(
        images=np.zeros((1, 4, SIZE, SIZE, 3), np.uint8), labels=np.zeros((1, 4), np.int32),
        mask=np.zeros((1, 4), bool),
    )  # fmt: skip
    state = parts.run_on.put_state(parts.initial)
    call = parts.run_on.compile_steps(rule, state, None, rows)
    after, seen = call(state, None, parts.run_on.place(rows))
    assert float(seen.real[0]) == 0 and float(seen.loss[0]) == 0
    before = parts.initial.params
    rate = float(parts.schedule(0)) * QUICK.weight_decay
    for one, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_allclose(one, np.asarray(other) * (1 - rate), rtol=1e-6, atol=1e-9)


def test_what_a_masked_row_holds_changes_nothing(dataset):
    """Not even with mixup, which pairs rows."""
    parts = Parts(dataset, "mlp", cross_entropy, dataclasses.replace(QUICK, mixup=1.0))
    rule = rules.imbsam(dataset.class_counts(), rho=0.1, eta=10)
    rng, ended = np.random.default_rng(0), []
    images = rng.integers(0, 256, (1, 8, SIZE, SIZE, 3)).astype(np.uint8)
    labels, mask = rng.integers(0, 8, (1, 8)).astype(np.int32), np.arange(8)[None] % 3 > 0
    call = None
    for seed in (1, 2):
        other = np.random.default_rng(seed)
        noise = other.integers(0, 256, images.shape).astype(np.uint8)
        rows = Rows(
            images=np.where(mask[..., None, None, None], images, noise),
            labels=np.where(mask, labels, other.integers(0, 8, (1, 8))).astype(np.int32),
            mask=mask,
        )
        state = parts.run_on.put_state(parts.initial)
        call = call or parts.run_on.compile_steps(rule, state, None, rows)
        after, seen = call(state, None, parts.run_on.place(rows))
        assert float(seen.real[0]) == mask.mean()
        ended.append(params_sha256(after.params))
    assert ended[0] == ended[1]


# ---- a full disk ----------------------------------------------------------------------------


@pytest.mark.slow
# Of several writers that fail, orbax waits for the first and leaves the others to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_said_and_a_resumed_run_ends_where_another_does(tmp_path, monkeypatch):
    """The limit on file sizes stands for the disk: writing fails in the middle of a checkpoint."""
    from tiny import tiny_dataset

    dataset, settings = tiny_dataset(), dataclasses.replace(QUICK, epochs=3)
    whole = run(tmp_path / "whole", dataset, settings=settings)["params_sha256"]
    plain, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self, step, *rest):
        if step == 10:
            self.latest_step()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        return plain(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        try:
            with pytest.raises(RunError, match=r"(?s)not be written.*last whole one is step 5"):
                run(tmp_path / "cut", dataset, settings=settings)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            gc.collect()
    again = run(tmp_path / "cut", dataset, settings=settings, resume=True)
    assert again["params_sha256"] == whole
