"""Adapters: published counts, nothing at first, the formulas, and what is frozen costs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from experiments.models import ADAPTERS, create_model
from experiments.models.adapters import AdaptFormer, LowRank, Prompts, default_size
from experiments.models.clip import ImageTower, Size, Text
from experiments.step.methods import Tabled
from experiments.step.objectives import Objective
from experiments.step.optimizer import optimizer
from experiments.step.passing import Passing
from experiments.step.state import create_state, split
from experiments.step.step import Inputs, make_step
from imbsam_jax import rules
from imbsam_jax.losses import cross_entropy
from rule_table import RULES, row_id
from tiny import tiny_dataset

_KEY = jax.random.key(0, impl="rbg")  # the generator whose programs compile fastest
_SIZE = Size(12, 2, 2, 4, 8, Text(9, 3, 4, 1, 1, 4))


def _count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@functools.cache
def _params(name, adapter, classes, side=224):
    model = create_model(name, classes, classifier="cosine", adapter=adapter)
    images = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(lambda k: model.init(k, images, train=False), jax.random.key(0))["params"]


# LIFT's, for ViT-B/16 and 100 classes; 76,800 more are the classifier's. That of adaptformer is
# printed, with the factor s of each block; the others are sums over what its code trains.
COUNTS = {
    "adaptformer": 101_436,
    "lora": 12 * 2 * 2 * 768 * 4,
    "vpt-deep": 12 * 10 * 768,
    "bias": 12 * (3 * 768 + 768 + 4 * 768 + 768 + 2 * 768),
    "layernorm": 12 * 2 * 2 * 768,
    "linear": 0,
    "full": 85_799_424,
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_trained_parameters_are_as_many_as_published(adapter):
    trained, frozen = split(_params("clip_vit_b16", adapter, 100), ADAPTERS[adapter].trained)
    assert _count(trained) - 100 * 768 == COUNTS[adapter]
    added = COUNTS[adapter] if ADAPTERS[adapter].sized else 0
    assert _count(trained) + _count(frozen) == 100 * 768 + COUNTS["full"] + added


def test_adaptformer_starts_as_lifts_code_draws_it():
    """down normal, of PyTorch's kaiming_normal_(a=sqrt(5)); the factor is 1, up is 0."""
    module = AdaptFormer(64, 1e-5)
    drawn = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 2, 300)))["params"]
    flat = {k: np.asarray(x) for k, x in traverse_util.flatten_dict(drawn, sep="/").items()}
    down = np.asarray(flat.pop("down/kernel"), np.float64) * np.sqrt(3 * 300)
    assert np.mean(down) == pytest.approx(0, abs=0.02)
    assert np.mean(down**2) == pytest.approx(1, abs=0.03)
    assert np.mean(down**4) == pytest.approx(3, abs=0.2)  # a uniform draw's is 9 / 5
    assert {name for name, x in flat.items() if (x == 1).all()} == {"norm/scale", "scale"}
    assert all((x == x.ravel()[0]).all() for x in flat.values()) and flat["scale"].shape == (1,)


def test_what_is_added_starts_within_the_published_bounds():
    """lora's first matrix U(+-1 / sqrt(r)), the second 0; tokens U(+-sqrt(6 / (3 p^2 + D)))."""
    x = np.zeros((1, 2, 300), np.float32)

    def drawn(module):
        return jax.jit(module.init)(jax.random.key(0, impl="rbg"), x)["params"]

    low = drawn(LowRank(4))
    assert not low["up"].any() and low["up"].shape == (4, 300)
    tokens = drawn(Prompts(40, 8))["tokens"]
    assert (low["down"].shape, tokens.shape) == ((300, 4), (40, 300))
    for found, bound in ((low["down"], 1 / 2), (tokens, (6 / (3 * 8**2 + 300)) ** 0.5)):
        assert 0.98 * bound < found.max() <= bound and -bound <= found.min() < -0.98 * bound
        assert np.std(found) == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_widths_are_lifts():
    found = [default_size("adaptformer", classes, 12) for classes in (10, 100, 365, 1000, 8142)]
    assert found == [1, 4, 8, 32, 256]
    assert default_size("vpt-deep", 8142, 12) == 10


def _model(adapter, dtype=jnp.float32):
    return ImageTower(5, _SIZE, adapter, 2, dtype=dtype, classifier="cosine")


@functools.cache
def _drawn(adapter):
    """Parameters as they start."""
    model = _model(adapter)
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.jit(lambda k: model.init(k, images, train=False))(_KEY)["params"]
    return jax.tree.map(np.asarray, params)


def _moved(adapter):
    """Parameters of no program, all away from where they start."""
    model = _model(adapter)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    flat = traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0), images)["params"])
    draw = np.random.RandomState(1)
    return traverse_util.unflatten_dict(
        {
            path: np.float32((path[-1] == "scale") + draw.normal(size=x.shape) * 0.3)
            for path, x in sorted(flat.items())
        }
    )


def _images(rows=3):
    return jnp.asarray(np.random.RandomState(0).normal(size=(rows, 8, 8, 3)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _embed(adapter, params):
    return _model(adapter).apply({"params": params}, _images(), train=False, method="embed")


@pytest.mark.parametrize("adapter", ["adaptformer", "lora"])  # prompts are drawn
def test_an_adapter_changes_nothing_at_first(adapter):
    params = _drawn(adapter)
    flat = traverse_util.flatten_dict(params)
    without = {path: x for path, x in flat.items() if not any("adapter" in part for part in path)}
    frozen = _embed("linear", traverse_util.unflatten_dict(without))
    np.testing.assert_array_equal(_embed(adapter, params), frozen)


def _norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def _by_hand(adapter, params):
    """The tower once more, in NumPy: one image, one block, one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = []
    for image in np.asarray(_images(), np.float64):
        patches = [image[i : i + 4, j : j + 4].reshape(-1) for i in (0, 4) for j in (0, 4)]
        kernel = params["tokens"]["projection"]["kernel"].reshape(48, 12)
        x = np.stack([params["tokens"]["class_token"], *(p @ kernel for p in patches)])
        x = _norm(x + params["tokens"]["positions"], params["norm_pre"])
        for k in range(2):
            x = _block_by_hand(adapter, x, params[f"blocks_{k}"])
        rows.append(_norm(x[0], params["norm"]))
    return np.stack(rows)


def _block_by_hand(adapter, x, p):
    tokens = len(x)
    if adapter == "vpt-deep":
        x = np.concatenate([x, p["adapter_prompts"]["tokens"]])
    y, attention = _norm(x, p["norm1"]), p["attention"]
    parts = {}
    for name in ("query", "key", "value"):
        parts[name] = y @ attention[name]["kernel"] + attention[name]["bias"]
        if adapter == "lora" and name != "key":
            low = attention[f"adapter_{name}"]
            parts[name] = parts[name] + y @ low["down"] @ low["up"] / 2
    heads = []
    for one in (slice(0, 6), slice(6, 12)):
        scores = parts["query"][:, one] @ parts["key"][:, one].T / np.sqrt(6)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ parts["value"][:, one])
    x = x + np.concatenate(heads, 1) @ attention["out"]["kernel"] + attention["out"]["bias"]
    y = _norm(x, p["norm2"]) @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    y = y / (1 + np.exp(-1.702 * y)) @ p["out"]["kernel"] + p["out"]["bias"]
    if adapter == "adaptformer":
        a = p["adapter"]
        down = np.maximum(_norm(x, a["norm"]) @ a["down"]["kernel"] + a["down"]["bias"], 0)
        y = y + a["scale"] * (down @ a["up"]["kernel"] + a["up"]["bias"])
    return (x + y)[:tokens]


@pytest.mark.parametrize("adapter", ["adaptformer", "lora", "vpt-deep", "linear"])
def test_equal_to_a_transcription(adapter):
    params = _moved(adapter)
    np.testing.assert_allclose(_embed(adapter, params), _by_hand(adapter, params), atol=2e-5)


# ---- what is frozen -----------------------------------------------------------------------------


@functools.cache
def _setting(adapter, dtype=jnp.float32):
    """(state, inputs) of a tower of one block."""
    dataset = tiny_dataset()
    tx = optimizer(lambda _: 0.1, 0.9, 5e-4)
    model = ImageTower(
        5, _SIZE._replace(depth=1), adapter, 2, dtype=dtype, classifier="cosine"
    )  # fmt: skip
    trained = ADAPTERS[adapter].trained
    state = jax.jit(lambda k: create_state(model, tx, _images(1), k, trained))(_KEY)
    return state, Inputs(*map(jnp.asarray, (dataset.train_images, dataset.train_labels)))


def _step(adapter, rule, passing=Passing(), dtype=jnp.float32):
    """(state, (state after a step on twelve rows, what it saw))."""
    state, inputs = _setting(adapter, dtype)
    if dtype == jnp.float64:
        state = jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )
    index = jnp.arange(0, 72, 6)
    step = make_step(
        rule, Objective(cross_entropy, 5), lambda images, *_: images.astype(dtype) / 255 - 0.5,
        passing=passing,
    )  # fmt: skip
    call = jax.jit(step, static_argnums=4)
    return state, call(state, inputs, index, jnp.arange(12), 12, jax.random.key(1))


@functools.cache
def _sam(adapter):
    return _step(adapter, rules.sam(5, rho=0.1))


def _momentum(state):
    def is_trace(x):
        return isinstance(x, optax.TraceState)

    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_trace)
    return next(leaf.trace for leaf in leaves if is_trace(leaf))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_momentum_exists_for_trained_leaves_alone(adapter):
    params = _params("vit_tiny", adapter, 5, side=32)
    trained, frozen = split(params, ADAPTERS[adapter].trained)
    moments = jax.eval_shape(optimizer(lambda _: 0.1, 0.9, 0.0).init, trained)
    assert _count(moments) - _count(trained) <= 2  # and a step or two
    assert not set(traverse_util.flatten_dict(trained)) & set(traverse_util.flatten_dict(frozen))
    assert (frozen == {}) == (adapter == "full")


@pytest.mark.parametrize(
    "adapter",
    [x if x == "adaptformer" else pytest.param(x, marks=pytest.mark.slow) for x in ADAPTERS],
)
def test_a_step_moves_what_is_trained_and_nothing_else(adapter):
    before, (after, _) = _sam(adapter)
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    momentum = _momentum(after)
    assert jax.tree.structure(momentum) == jax.tree.structure(after.params)
    still = {"adaptformer": ("down", "norm", "scale"), "lora": ("down",)}  # behind a zero at first
    for path, x in traverse_util.flatten_dict(momentum).items():
        waits = "adapter" in str(path) and set(path) & set(still.get(adapter, ()))
        unseen = path[-2:] == ("key", "bias")  # by the softmax
        assert waits or unseen or np.any(np.asarray(x) != 0), path


def test_the_norm_of_the_direction_is_over_what_moves():
    """SAM's first momentum, taken by hand on the trained leaves: g(theta + rho d / ||d||)."""
    before, (after, _) = _sam("adaptformer")
    inputs = _setting("adaptformer")[1]
    images = inputs.images[:72:6].astype(jnp.float32) / 255 - 0.5

    def loss(params):
        flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(before.frozen)
        variables = {"params": traverse_util.unflatten_dict(flat)}
        logits = before.apply_fn(variables, images, train=False)
        return cross_entropy(logits, inputs.labels[:72:6]).mean()

    @jax.jit
    def by_hand(params):
        direction = jax.grad(loss)(params)
        length = optax.tree.norm(direction)
        moved = jax.tree.map(lambda x, d: x + 0.1 * d / length, params, direction)
        return jax.tree.map(lambda g, x: g + 5e-4 * x, jax.grad(loss)(moved), params)

    wanted = by_hand(before.params)
    jax.tree.map(
        lambda found, g: np.testing.assert_allclose(found, g, atol=1e-5), _momentum(after), wanted
    )


@pytest.mark.slow  # each is a program; what is trained and what is not, the tests above show
@pytest.mark.parametrize("row", [row for row in RULES if row.rule], ids=row_id)
def test_every_rule_trains(row):
    before, (after, seen) = _step("adaptformer", row.rule(0.1))
    assert np.isfinite(float(seen.loss))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after.params))
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)


def _flops(adapter):
    """(forward, gradient) of a batch, as XLA counts them before it optimises."""
    model = ImageTower(5, _SIZE._replace(width=48), adapter, 2, classifier="cosine")
    variables = jax.eval_shape(lambda k: model.init(k, _images(), train=False), jax.random.key(0))
    trained, frozen = split(variables["params"], ADAPTERS[adapter].trained)

    def loss(trained, frozen):
        flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
        params = traverse_util.unflatten_dict(flat)
        return model.apply({"params": params}, _images(), train=False).sum()

    calls = (jax.jit(loss), jax.jit(jax.grad(loss)))
    return [call.lower(trained, frozen).cost_analysis()["flops"] for call in calls]


def test_the_backward_pass_stops_at_the_first_adapter():
    """Gradients of frozen kernels are not computed: 3 forward passes of full, less than 2 of an
    adapter's, 1 of the classifier's alone.
    """
    ratios = {
        adapter: gradient / forward
        for adapter in ("full", "adaptformer", "linear")
        for forward, gradient in [_flops(adapter)]
    }
    assert 2.8 < ratios["full"] < 3.1, ratios
    # Of two blocks the first's attention, a third of a block, is before the first adapter.
    assert 1.4 < ratios["adaptformer"] < 1.9, ratios
    assert 1 <= ratios["linear"] < 1.05, ratios


@pytest.mark.slow
def test_own_rows_are_the_whole_in_float64(x64):
    """LayerNorm alone: rows do not see each other, and a tail's pass costs its rows."""
    rule = Tabled(rules.imbsam([40, 20, 10, 5, 3], rho=0.1, eta=10))
    labels = tiny_dataset().train_labels[:72:6]
    room = Passing("independent", room=lambda _: lambda classes: [int(classes[labels].sum())])
    _, (whole, _) = _step("adaptformer", rule, dtype=jnp.float64)
    _, (own, _) = _step("adaptformer", rule, room, dtype=jnp.float64)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), whole.params, own.params
    )
