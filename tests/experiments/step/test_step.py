"""One step's parts against closed forms and plain loops."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data import augment
from experiments.step import step as step_module
from experiments.step.many import many_steps
from experiments.step.methods import Gradient
from experiments.step.objectives import Adversary, Objective
from experiments.step.optimizer import learning_rate, optimizer
from experiments.step.passing import EXAMPLES, Passing
from experiments.step.state import create_state
from experiments.step.statistics import OF_BATCH, Noted
from experiments.step.step import Inputs, Rows, StepMetrics, count_hits, make_step
from imbsam_jax import losses, passes, rules
from imbsam_jax.losses import cross_entropy
from tiny import TinyNet, tiny_dataset


def test_crop_and_flip_equals_a_loop_and_depends_on_the_position_alone():
    images = tiny_dataset().train_images[:6]
    key = jax.random.key(3, impl="rbg")  # the generator whose programs compile fastest
    call = jax.jit(lambda images, rows: augment.crop_and_flip(images, rows, 6, key, pad=2))
    found = np.asarray(call(images, np.arange(6)))

    @jax.jit
    def drawn(key):
        crop_key, flip_key = jax.random.split(key)
        corners = jax.random.randint(crop_key, (6, 2), 0, 5)
        return corners, jax.random.bernoulli(flip_key, 0.5, (6,))

    corners, flips = map(np.asarray, drawn(key))
    assert flips.any() and not flips.all()
    for image, (top, left), flip, seen in zip(images, corners, flips, found, strict=True):
        canvas = np.zeros((12, 12, 3), np.uint8)
        canvas[2:10, 2:10] = image
        expected = canvas[top : top + 8, left : left + 8]
        np.testing.assert_array_equal(seen, expected[:, ::-1] if flip else expected)
    rows = np.array([4, 1])
    np.testing.assert_array_equal(call(images[rows], rows), found[rows])


def test_resized_crops_lie_where_a_loop_draws_them():
    """On images whose pixels are 3 y + x a part of them is such a slope, too."""
    down, across = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    images = np.tile((3.0 * down + across)[None, :, :, None], (9, 1, 1, 1)).astype(np.float32)
    key = jax.random.key(5, impl="rbg")
    call = jax.jit(lambda images, rows: augment.resized_crop(images, rows, 9, key, 24))
    found = np.asarray(call(images, np.arange(9)))
    limit = np.log(4 / 3)

    @jax.jit
    def drawn(key):
        draws = jax.random.split(key, 3)
        return (
            jax.random.uniform(draws[0], (9, 10), minval=0.08),
            jax.random.uniform(draws[1], (9, 10), minval=-limit, maxval=limit),
            jax.random.uniform(draws[2], (9, 2)),
        )

    shares, logs, places = map(np.asarray, drawn(key))
    areas, aspects, sizes = shares * 144, np.exp(logs), set()
    for seen, area, aspect, place in zip(found, areas, aspects, places, strict=True):
        tries = [(round(np.sqrt(s / r)), round(np.sqrt(s * r)))
                 for s, r in zip(area, aspect, strict=True)]  # fmt: skip
        high, wide = next(box for box in tries if max(box) <= 12)
        sizes.add((high, wide))
        top, left = (int(u * (12 - side + 1)) for u, side in zip(place, (high, wide), strict=True))
        y = np.clip(top + (np.arange(24) + 0.5) * high / 24 - 0.5, 0, 11)
        x = np.clip(left + (np.arange(24) + 0.5) * wide / 24 - 0.5, 0, 11)
        np.testing.assert_allclose(seen[..., 0], 3 * y[:, None] + x[None], atol=1e-3)
    assert len(sizes) > 5
    rows = np.array([4, 1])
    np.testing.assert_allclose(call(images[:2], rows), found[rows], atol=1e-5)


def test_mixed_images_and_labels_are_weighed_alike():
    """A quarter of the first, three of the second: by hand."""
    images, labels = augment.mix(
        lambda labels: np.eye(3)[labels], (np.full((1, 2, 2, 3), 8.0), np.full((1, 2, 2, 3), 16.0)),
        ([0], [2]), 0.25,
    )  # fmt: skip
    np.testing.assert_array_equal(images, np.full((1, 2, 2, 3), 14.0))
    np.testing.assert_array_equal(labels, [[0.25, 0, 0.75]])


def test_an_image_in_which_no_part_fits_is_taken_whole(monkeypatch):
    """Ten times wider than high, no square of half its area lies in it."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, minval=0.0, maxval=1.0: (
        jnp.full(shape, 0.5 * (max(minval, 0) + maxval))
    ))  # fmt: skip
    image = np.random.RandomState(0).uniform(size=(1, 2, 20, 3)).astype(np.float32)

    @jax.jit
    def both(image):
        found = augment.resized_crop(image, jnp.arange(1), 1, jax.random.key(0), 8)
        return found, jax.image.resize(image, (1, 8, 8, 3), "linear")

    np.testing.assert_allclose(*both(image), atol=1e-5)


def test_five_crops_are_the_corners_and_the_centre():
    images = jnp.arange(2 * 5 * 6).reshape(2, 5, 6, 1)
    found = augment.five_crops(images, 3)
    corners = [(0, 0), (0, 3), (2, 0), (2, 3), (1, 2)]
    for seen, (top, left) in zip(found, corners, strict=True):
        np.testing.assert_array_equal(seen, images[:, top : top + 3, left : left + 3])
    assert augment.resized(images, 5).shape == (2, 5, 5, 1)


def test_normalise_is_the_stated_affine_map():
    images = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
    found = augment.normalise(images, (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    np.testing.assert_allclose(found[0, 0, 0], [-1.0, 0.0, 0.5], atol=1e-6)


def test_schedules_at_known_epochs():
    def epochs(kind: str, at: list[int], total: int) -> list[float]:
        schedule = learning_rate(kind, 0.1, total, 7)
        # First and last step of an epoch have the epoch's rate.
        values = [float(schedule(7 * epoch)) for epoch in at]
        assert values == [float(schedule(7 * epoch + 6)) for epoch in at]
        return values

    cosine = [0.1, 0.05 * (1 + np.cos(np.pi / 4)), 0.05, 0.05 * (1 + np.cos(3 * np.pi / 4))]
    np.testing.assert_allclose(epochs("cosine", [0, 1, 2, 3], 4), cosine, rtol=1e-5)
    np.testing.assert_allclose(
        epochs("cosine-prestep", [0, 1, 2, 3], 4), [*cosine[1:], 0.0], rtol=1e-5, atol=1e-9
    )
    ldam = epochs("steps", [0, 3, 4, 5, 159, 160, 179, 180, 199], 200)
    expected = [0.02, 0.08, 0.1, 0.1, 0.1, 1e-3, 1e-3, 1e-5, 1e-5]
    np.testing.assert_allclose(ldam, expected, rtol=1e-5)
    # CC-SAM's: from 7/15 up in five epochs; the epochs that end at 80% and 90% are the first less.
    warm = epochs("warmup-steps", [0, 1, 2, 3, 4, 5, 158, 159, 178, 179, 199], 200)
    rise = [0.1 * x / 15 for x in (7, 9, 11, 13, 15, 15, 15)]
    np.testing.assert_allclose(warm, [*rise, 1e-2, 1e-2, 1e-3, 1e-3], rtol=1e-5)
    assert epochs("constant", [0, 3], 4) == [pytest.approx(0.1)] * 2
    # After the last epoch, as for a checkpoint's state, the rate stays what it was.
    last = learning_rate("cosine", 0.1, 4, 7)
    assert float(last(27)) == float(last(28)) == float(last(70)) > 0
    with pytest.raises(ValueError, match=r"linear.*cosine"):
        learning_rate("linear", 0.1, 4, 7)


def test_the_optimizer_is_pytorchs_sgd(x64):
    rates = jnp.array([0.5, 0.25, 0.125])
    tx = optimizer(lambda step: rates[step], momentum=0.9, weight_decay=0.1)
    theta, velocity = np.array([1.0, -2.0]), np.zeros(2)
    params = jnp.asarray(theta)
    state = tx.init(params)
    for step, gradient in enumerate(np.array([[0.3, 0.1], [-0.2, 0.4], [0.0, 1.0]])):
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + gradient + 0.1 * theta
        theta = theta - float(rates[step]) * velocity
        np.testing.assert_allclose(params, theta, atol=1e-12)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_the_classifier_alone_is_projected_after_so_many_steps(every):
    """Columns of norm 1 and 3: onto 1 + 0.1 (3 - 1)."""
    kernel = jnp.array([[1.0, 3.0]])
    params = {"body": {"kernel": kernel}, "head": {"kernel": kernel, "bias": jnp.full(2, 9.0)}}
    options = {"max_norm_every": every} if every else {}  # none unless asked for
    tx = optimizer(lambda step: 0.0, 0.0, 0.0, **options)
    state = tx.init(params)
    for step in range(1, 4):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        found = optax.apply_updates(params, updates)
        projected = bool(every) and step % every == 0
        want = np.array([[1.0, 1.2 if projected else 3.0]])
        np.testing.assert_allclose(found["head"]["kernel"], want, rtol=1e-6)
        assert (found["body"]["kernel"] == kernel).all() and (found["head"]["bias"] == 9).all()


def test_the_passes_of_one_run_are_not_those_of_another():
    """A default is one value for all who leave it out: it cannot be changed."""
    with pytest.raises(AttributeError, match="micro_batches"):
        Passing().micro_batches = 2


@pytest.mark.parametrize("examples", EXAMPLES)
def test_passes_of_the_library_for_a_batch(examples):
    """Images, target and logits have a row for each example, running statistics have none."""
    rooms = []

    def buffers(classes):
        return (12,)

    def room(rows):
        rooms.append(rows)
        return buffers

    found = Passing(examples, 3, room).over(12)
    batched = (True, True, False, True)
    if examples == "dependent":
        assert found == passes.whole(3, batched) and not rooms
        assert Passing().over(12) == passes.whole(1, batched)
        return
    kind = {"independent": "own_rows"}.get(examples, examples)
    assert type(found) is getattr(passes, kind) and rooms == [12]
    assert (found.buffers, found.batched) == (buffers, batched)
    if kind == "split_norm":  # a group is normalised by what the pass at theta noted
        assert found.carry(("images", "target", "before", "x"), ("noted", "y")) == (
            "images", "target", "noted", None,
        )  # fmt: skip


@pytest.mark.parametrize(("steps", "size"), [(0, 4), (1, 4), (2, 4), (3, 4), (3, 1)])
def test_many_steps_are_the_steps_one_after_the_other(steps, size):
    """A lone one without a loop around it."""

    def step(state, inputs, rows, positions, batch_size, key):
        seen = rows.index.sum() * inputs + positions.sum() + batch_size
        return 2 * state + seen, StepMetrics(seen, state, seen)

    rows = Rows(index=jnp.arange(size * steps).reshape(steps, size))
    given = (10, jnp.arange(size), 5, None)  # inputs; positions, rows of the whole batch, key

    def many(state):
        return many_steps(step, state, given[0], rows, *given[1:])

    state, seen = many(jnp.array(1))
    assert ("scan" in str(jax.make_jaxpr(many)(jnp.array(1)))) == (steps != 1)
    expected = jnp.array(1)
    for k in range(steps):
        expected, one = step(expected, given[0], Rows(index=rows.index[k]), *given[1:])
        assert [int(leaf[k]) for leaf in seen[:3]] == [int(leaf) for leaf in one[:3]]
    assert state == expected and seen.loss.shape == (steps,)


@pytest.fixture(scope="module")
def one_step():
    """A step of a net with batch normalisation, from one state and batch under any rule."""
    dataset = tiny_dataset()
    model = TinyNet(5)
    tx = optimizer(lambda _: 0.1, 0.9, 5e-4)
    example = jnp.zeros((1, 8, 8, 3))
    state = jax.jit(lambda key: create_state(model, tx, example, key))(jax.random.key(0))
    inputs = Inputs(*map(jnp.asarray, (dataset.train_images, dataset.train_labels)))
    index = jnp.arange(0, 78, 5)

    def prepare(images, positions, batch_size, key):
        return augment.normalise(images, dataset.mean, dataset.std)

    def run(rule):
        step = make_step(rule, Objective(cross_entropy, 5), prepare)
        call = jax.jit(step, static_argnums=4)
        return call(state, inputs, index, jnp.arange(len(index)), len(index), jax.random.key(1))

    return state, inputs, index, prepare, run


@pytest.mark.allow_rank_promotion  # Flax's batch normalisation
def test_statistics_and_metrics_are_those_of_the_clean_pass(one_step):
    state, inputs, index, prepare, run = one_step
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    labels = np.asarray(inputs.labels)[np.asarray(index)]

    @jax.jit
    def clean(variables, images):
        images = prepare(images, None, None, None)
        logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return logits, updated, losses.mean()

    logits, updated, loss = clean(variables, np.asarray(inputs.images)[np.asarray(index)])
    accuracy = (np.asarray(logits).argmax(-1) == labels).mean()
    counts = np.bincount(np.asarray(inputs.labels))
    params = {}
    for name, rule in {
        "sgd": rules.sgd(5),
        "imbsam": rules.imbsam(counts, rho=0.5, eta=10),
    }.items():
        after, seen = run(rule)
        np.testing.assert_allclose(seen.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(seen.accuracy, accuracy, rtol=1e-6)
        for found, expected in zip(
            jax.tree.leaves(after.batch_stats),
            jax.tree.leaves(updated["batch_stats"]),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        params[name] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(after.params)])
    assert np.abs(params["sgd"] - params["imbsam"]).max() > 1e-3


@pytest.mark.allow_rank_promotion
def test_counted_hits_equal_a_count_of_predictions(one_step):
    state, *_ = one_step
    dataset = tiny_dataset()

    def prepare(images):
        return augment.normalise(images, dataset.mean, dataset.std)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(lambda images: state.apply_fn(variables, prepare(images), train=False))
    count = jax.jit(count_hits, static_argnums=(1, 4))
    plain = np.asarray(apply(dataset.test_images))
    mirrored = np.asarray(apply(dataset.test_images[:, :, ::-1]))
    test = Inputs(jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels))
    everyone, shown = jnp.arange(55), jnp.arange(55) % 7 != 0
    for flip, logits in ((False, plain), (True, (plain + mirrored) / 2)):
        correct, total, _ = count(state, prepare, test, Rows(index=everyone, mask=shown), flip)
        hit = (logits.argmax(-1) == dataset.test_labels) & np.asarray(shown)
        for c in range(5):
            mine = dataset.test_labels == c
            assert int(correct[c]) == hit[mine].sum()
            assert int(total[c]) == np.asarray(shown)[mine].sum()


# ---- what a method is given, and what becomes of what it gives ----------------------------------

INDEX = jnp.array([7, 3, 5, 1])
IMAGES = jnp.arange(10.0)[:, None, None, None] * jnp.ones((10, 1, 2, 1))
LABELS = jnp.arange(10) % 3
LOGITS = jnp.array([[9.0, 1, 2], [0, 5, 1], [2, 1, 0], [0, 1, 4]])  # 0, 1, 0, 2


class Given:
    """A method that keeps what it is given, and gives a gradient that is told apart."""

    def __init__(self, logits=LOGITS):
        self.logits = logits

    def gradient(self, halves, params, extra, step, axis):
        self.halves, self.given = halves, (params, extra, int(step), axis)
        return Gradient(0.5, self.logits, "stats after", "gradient", "extra after")


def a_step(rows=INDEX, objective=None):
    """(the method that was given halves, the state after, what was seen)"""
    method, seeds = Given(), []

    def prepare(images, positions, batch_size, key):
        assert batch_size == 4
        seeds.append(jax.random.key_data(key).tolist())
        return images + 100 * positions[:, None, None, None]

    given = {"step": 6, "params": "params", "extra": "extra", "batch_stats": "stats"}
    state = SimpleNamespace(**given, apply_gradients=lambda **changes: changes)
    step = make_step(method, objective or Objective(cross_entropy, 3), prepare)
    inputs = Inputs(IMAGES, LABELS)
    if isinstance(rows, Rows) and rows.index is None:
        inputs = None
    after, seen = step(state, inputs, rows, jnp.arange(4), 4, jax.random.key(1))
    assert seeds[0] == jax.random.key_data(jax.random.fold_in(jax.random.key(1), 6)).tolist()
    assert after == {"grads": "gradient", "batch_stats": "stats after", "extra": "extra after"}
    assert method.given == ("params", "extra", 6, None) and method.halves.stats == "stats"
    return method.halves, seen


def test_a_method_is_given_the_rows_of_the_index():
    """Of labels 1, 0, 2 and 1 the first and third guess, 0, are wrong, and the last, 2."""
    halves, seen = a_step()
    images = np.asarray(IMAGES[INDEX]) + 100 * np.arange(4)[:, None, None, None]
    np.testing.assert_array_equal(halves.images, images)
    assert halves.labels.tolist() == halves.target.tolist() == [1, 0, 2, 1]
    assert halves.mask is None and halves.passes == passes.whole(1, (True, True, False, True))
    assert (seen.loss, float(seen.accuracy), float(seen.real), seen.stop) == (0.5, 0.0, 1.0, None)
    _, seen = a_step(Rows(index=jnp.array([0, 1, 3, 2])))  # 0, 1, 0, 2
    assert float(seen.accuracy) == 1


@pytest.mark.parametrize(("mask", "accuracy"), [([1, 1, 0, 1], 1 / 3), ([0, 0, 1, 0], 1.0),
                                                ([0, 0, 0, 0], 0.0)])  # fmt: skip
def test_rows_that_are_none_are_neither_right_nor_wrong(mask, accuracy):
    """Images that were brought along; where none could be read, no guess was right."""
    labels = jnp.array([2, 1, 0, 0])
    rows = Rows(images=IMAGES[:4], labels=labels, mask=jnp.array(mask, bool))
    halves, seen = a_step(rows)
    assert halves.labels is labels and halves.mask is rows.mask
    assert float(seen.accuracy) == pytest.approx(accuracy)
    assert float(seen.real) == sum(mask) / 4


@pytest.fixture
def share(monkeypatch):
    """Drawn evenly, which is quicker than of a Beta distribution"""

    def drawn(key, a, b):
        assert a == b == 0.7
        return jax.random.uniform(key)

    monkeypatch.setattr(jax.random, "beta", drawn)


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_mixed_with_others_of_the_batch_as_they_are_there(masked):
    """By the batch's share and order; a row whose partner is none stays by itself."""
    key = jax.random.fold_in(jax.random.key(1), 6)
    share_key, pair_key = jax.random.split(jax.random.fold_in(key, 2))
    share = float(jax.random.uniform(share_key))
    others = np.asarray(jax.random.permutation(pair_key, 4))
    mask = jnp.array([True, True, False, True]) if masked else None
    if masked:
        others = np.where(np.asarray(mask)[others], others, np.arange(4))
    halves, seen = a_step(Rows(index=INDEX, mask=mask), Objective(cross_entropy, 3, mixup=0.7))
    whole = np.asarray(IMAGES[INDEX]) + 100 * np.arange(4)[:, None, None, None]
    mixed = share * whole + (1 - share) * whole[others]
    np.testing.assert_allclose(halves.images, mixed, rtol=1e-5)
    soft = np.eye(3)[[1, 0, 2, 1]]
    soft = share * soft + (1 - share) * soft[others]
    np.testing.assert_allclose(halves.target, soft, rtol=1e-6)
    assert halves.labels.tolist() == [1, 0, 2, 1]
    real = np.ones(4) if mask is None else np.asarray(mask)
    hits = soft[np.arange(4), [0, 1, 0, 2]]
    np.testing.assert_allclose(seen.accuracy, (hits * real).sum() / real.sum(), rtol=1e-5)


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("masked", [False, True])
def test_devices_mix_their_rows_with_those_of_the_whole_batch(masked):
    """And all of them have its accuracy, by the rows that are real anywhere."""
    mask = jnp.array([True, True, False, True]) if masked else None
    objective = Objective(cross_entropy, 3, mixup=0.7)
    whole, seen = a_step(Rows(index=INDEX, mask=mask), objective)
    state = SimpleNamespace(
        step=6, params=None, extra=None, batch_stats=None, apply_gradients=lambda **_: None
    )

    def prepare(images, positions, batch_size, key):
        return images + 100 * positions[:, None, None, None]

    def part(index, mask, positions, logits):
        method = Given(logits)
        step = make_step(method, objective, prepare, axis_name="devices")
        rows, inputs = Rows(index=index, mask=mask), Inputs(IMAGES, LABELS)
        _, mine = step(state, inputs, rows, positions, 4, jax.random.key(1))
        assert method.given[3] == "devices"
        return method.halves.images, method.halves.target, mine.accuracy, mine.real

    def halved(x):
        return None if x is None else x.reshape(2, 2, *x.shape[1:])

    parts = map(halved, (INDEX, mask, jnp.arange(4), LOGITS))
    images, target, accuracy, real = jax.vmap(part, axis_name="devices")(*parts)
    np.testing.assert_allclose(images.reshape(whole.images.shape), whole.images, rtol=1e-6)
    np.testing.assert_allclose(target.reshape(4, 3), whole.target, rtol=1e-6)
    np.testing.assert_allclose(accuracy, [seen.accuracy] * 2, rtol=1e-6)
    assert real.tolist() == [seen.real] * 2


def a_state(stats):
    """One that notes how it is applied."""
    asked = []

    def apply_fn(variables, images, **how):
        asked.append((variables, how))
        if "mutable" not in how:
            return images
        return images, {name: {"moved": name} for name in how["mutable"]} if stats else {}

    return SimpleNamespace(apply_fn=apply_fn, frozen={}, step=3), asked


BOTH = {"train": True, "mutable": ["batch_stats"]}


@pytest.mark.parametrize(
    ("how", "updated", "train", "after"),
    [
        (passes.whole(), True, BOTH, {"moved": "batch_stats"}),
        (passes.whole(), False, {"train": False}, "stats"),
        (passes.own_rows(lambda c: (1,)), False, {"train": False}, "stats"),
        (passes.shared_norm(lambda c: (1,)), True, BOTH, {"moved": "batch_stats"}),
        (passes.split_norm(lambda c: (1,)), True,
         {"train": True, "mutable": ["batch_stats", OF_BATCH]},
         Noted({"moved": "batch_stats"}, {"moved": OF_BATCH})),
    ],
)  # fmt: skip
def test_how_a_pass_normalises_and_what_becomes_of_the_statistics(how, updated, train, after):
    """By the batch where they are updated; frozen ones, and those of rows alone, stay."""
    state, asked = a_state(stats=True)
    objective = Objective(cross_entropy, 3, train_statistics=updated)
    found, stats = step_module._features_fn(state, objective, how)({"a": 1}, "stats", "images")
    ((variables, mode),) = asked
    assert found == "images" and mode == {**train, "method": "embed"}
    assert variables == {"params": {"a": 1}, "batch_stats": "stats"}
    running = step_module._running("stats", stats)
    assert running == (after.running if isinstance(after, Noted) else after)
    assert stats == (None if isinstance(how, passes.own_rows) else after)


def test_a_group_is_normalised_by_what_was_noted():
    state, asked = a_state(stats=True)
    features = step_module._features_fn(
        state, Objective(cross_entropy, 3), passes.split_norm(lambda c: (1,))
    )
    noted = Noted("running", "of the batch")
    assert features({"a": 1}, noted, "images") == ("images", noted)
    ((variables, mode),) = asked
    assert variables["batch_stats"] == "of the batch" and mode["train"] is False


@pytest.mark.parametrize("stats", [True, False])
def test_rows_alone_are_no_batch_to_normalise_by(stats):
    """Where the model has no statistics they are as good as any."""
    state, asked = a_state(stats)
    how = passes.own_rows(lambda classes: (1,))
    features = step_module._features_fn(state, Objective(cross_entropy, 3), how)
    if stats:
        with pytest.raises(ValueError, match="examples are not independent where a model normal"):
            features({"a": 1}, {}, "images")
    else:
        assert features({"a": 1}, {}, "images") == ("images", None)
        assert asked[0][1]["train"] is True


def test_a_loss_that_is_divided_by_the_whole_batch_is_so_in_a_part_of_it():
    """Weights 1, 2 and 4 of five rows, one of which is none: by their mean over the other four."""
    weights, labels = jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 1, 2, 2, 0])
    mask = jnp.array([True, True, True, True, False])
    loss = losses.weighted(cross_entropy, weights, normalise="weights")

    def apply_fn(variables, features, method):
        assert (variables, method) == ({"params": {"w": 3.0}}, "classify")
        return features

    state = SimpleNamespace(apply_fn=apply_fn, frozen={}, step=3)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    of_part = step_module._losses_fn(state, Objective(loss, 3), mask)(labels)
    found, seen = of_part({"w": 3.0}, logits[2:4], labels[2:4])
    plain = -jax.nn.log_softmax(logits)[np.arange(5), labels]
    np.testing.assert_allclose(found, 4 * plain[2:4] / (11 / 4), rtol=1e-5)
    np.testing.assert_array_equal(seen, logits[2:4])
    # A loss without such a factor, and any function: as it is.
    for other in (losses.weighted(cross_entropy, weights, normalise="batch"), cross_entropy):
        by = weights[labels] if other is not cross_entropy else 1
        of_all = step_module._losses_fn(state, Objective(other, 3), None)(labels)
        np.testing.assert_allclose(of_all({"w": 3.0}, logits, labels)[0], by * plain, rtol=1e-5)


def test_an_adversary_has_the_share_of_the_step_and_the_rows_that_count():
    def wrap(fn):
        def wrapped(params, target, features, *, share, mask):
            return fn(params, features)[0] * share, (target, mask)

        return wrapped

    state = SimpleNamespace(apply_fn=lambda v, x, method: x, frozen={}, step=3)
    objective = Objective(cross_entropy, 3, adversary=Adversary(wrap, lambda step: 0.25 * step))
    mask, logits = jnp.array([True, False]), jnp.eye(3)[:2]
    labels = jnp.array([0, 2])
    found, (target, rows) = step_module._losses_fn(state, objective, mask)(labels)(
        {}, logits, labels
    )
    plain = -jax.nn.log_softmax(logits)[np.arange(2), labels]
    np.testing.assert_allclose(found, 0.75 * plain, rtol=1e-6)
    assert target is labels and rows is mask
