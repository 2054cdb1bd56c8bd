"""Models: published sizes, PyTorch's padding and initialisation, and one contract for all."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from experiments.models import (
    BATCH_NORM_MOMENTUM,
    MODELS,
    WITHOUT_BATCH_NORM,
    WITHOUT_CONVOLUTIONS,
    create_model,
)
from experiments.models.bottleneck import BottleneckBlock, max_pool
from experiments.models.resnet import BasicBlock, pad_shortcut

_IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
_D = 192  # width of ViT-Ti
# What holds of every block, of fewer.
_SHALLOW = {
    "vit_ti4": {"depth": 2},
    "resnet32_gn": {"stage_sizes": (1, 1), "widths": (16, 32)},
    "resnet14_bottleneck": {"stage_sizes": (1, 1), "widths": (16, 32), "inner_widths": (4, 8)},
}
_KEY = jax.random.key(0, impl="rbg")  # the generator whose programs compile fastest


@functools.cache
def _variable_shapes(
    name: str, num_classes: int, dtype: Any = jnp.float32, shallow: bool = False
) -> Any:
    model = create_model(name, num_classes, dtype=dtype)
    if shallow:
        model = model.clone(**_SHALLOW.get(name, {}))
    return jax.eval_shape(
        lambda key, images: model.init(key, images, train=False), jax.random.key(0), _IMAGES
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("resnet32", 10, 464_154),
        ("resnet32", 100, 470_004),
        ("resnet34_3x3", 100, 21_328_292),
        ("resnet32_gn", 10, 464_154),
        ("resnet50", 1000, 25_557_032),
        ("resnext50_32x4d", 1000, 25_028_904),
        ("resnet152", 1000, 60_192_808),
        # 48 numbers a patch, 64 positions, and per block 12 D^2 of kernels, 9 D of biases, 4 D of
        # LayerNorm.
        ("vit_ti4", 10, 49 * _D + 64 * _D + 12 * (12 * _D**2 + 13 * _D) + 2 * _D + 10 * (_D + 1)),
        ("mlp", 10, 3072 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
    ],
)
def test_parameter_count(name: str, num_classes: int, expected: int) -> None:
    params = _variable_shapes(name, num_classes)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected


def test_resnet20_has_the_published_depth() -> None:
    """He et al. (2016), Table 6: 0.27M numbers at 10 classes; three blocks a stage."""
    params = _variable_shapes("resnet20", 10)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 269_722
    assert sum(name.startswith("blocks_") for name in params) == 9
    tiny = _variable_shapes("resnet8", 10)["params"]
    assert sum(name.startswith("blocks_") for name in tiny) == 3


# Tracing many blocks three times takes seconds: shallower networks have the same.
DEEP = ("resnet20", "resnet32", "resnet32_gn", "resnet34_3x3", "resnet50", "resnext50_32x4d")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * (name in ("resnet152", *DEEP)))
        for dtype in (jnp.float32, jnp.bfloat16)
        for name in MODELS
    ],
)
def test_contract(name: str, dtype: Any) -> None:
    model = create_model(name, 7, dtype=dtype).clone(**_SHALLOW.get(name, {}))
    variables = _variable_shapes(name, 7, dtype, shallow=True)
    assert ("batch_stats" in variables) == (name not in WITHOUT_BATCH_NORM)
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    # Patches of a vision transformer are cut out by one.
    assert (len(kernels) > 1) == (name not in WITHOUT_CONVOLUTIONS)

    def train(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    def evaluate(variables: Any, images: jax.Array) -> Any:
        features = model.apply(variables, images, train=False, method="embed")
        return (
            model.apply(variables, images, train=False),
            model.apply(variables, features, method="classify"),
        )

    logits, updates = jax.eval_shape(train, variables, _IMAGES)
    for result in (logits, *jax.eval_shape(evaluate, variables, _IMAGES)):
        assert (result.shape, result.dtype) == ((2, 7), jnp.float32)
    # Nothing but the batch statistics may change, and neither their structure nor their types.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), {k: v for k, v in variables.items() if k != "params"}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables["params"]["head"]) == {"kernel", "bias"}


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 7), ("resnet14_bottleneck", 17)])
def test_batch_normalisation_keeps_the_published_share(name: str, layers: int) -> None:
    """A step takes the batch's statistics from the running ones, by this share."""
    seen = []

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            seen.append((context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    model, variables = create_model(name, 7), _variable_shapes(name, 7)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, images: model.apply(v, images, train=False), variables, _IMAGES)
    assert seen == [(BATCH_NORM_MOMENTUM, 1e-5)] * layers


@pytest.mark.parametrize(
    "name", ["mlp", "resnet8", "resnet32_gn", "vit_ti4", "resnet14_bottleneck"]
)
def test_bfloat16_reaches_every_layer_but_the_classifier(name: str) -> None:
    def layers(variables: Any, images: jax.Array) -> Any:
        _, seen = model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return seen["intermediates"]

    model = create_model(name, 7, dtype=jnp.bfloat16).clone(**_SHALLOW.get(name, {}))
    seen = jax.eval_shape(layers, _variable_shapes(name, 7, shallow=True), _IMAGES)
    assert {x.dtype for x in jax.tree.leaves(seen.pop("head"))} == {jnp.dtype("float32")}
    del seen["__call__"]
    assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype("bfloat16")}


def test_group_normalisation_has_eight_groups() -> None:
    """An eighth of the channels each, and PyTorch's epsilon, as BatchNorm's."""
    seen = []

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.GroupNorm):
            seen.append((context.module.num_groups, context.module.epsilon))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        _variable_shapes.__wrapped__("resnet32_gn", 7, shallow=True)
    assert seen == [(8, 1e-5)] * 5


def test_attention_heads_of_vit_ti() -> None:
    """Three of 64 channels each (Touvron et al. 2021, Table 1): the count of numbers is any's."""
    attention = _variable_shapes("vit_ti4", 7, shallow=True)["params"]["blocks_0"]["attention"]
    assert attention["query"]["kernel"].shape == (_D, 3, 64)


_FEATURED = {**_SHALLOW, "resnet8": {}, "vit_tiny": {}, "clip_vit_tiny": {}}


@pytest.mark.parametrize("name", _FEATURED)
def test_in_bfloat16_features_and_exponentials_are_of_float32(name: str) -> None:
    """Of sums over many numbers: a mean over places, a softmax, the classifier's input."""
    model = create_model(name, 7, dtype=jnp.bfloat16).clone(**_FEATURED[name])
    variables = _variable_shapes(name, 7, jnp.bfloat16, shallow=True)
    embed = functools.partial(model.apply, train=False, method="embed")
    made = jax.make_jaxpr(embed)(variables, _IMAGES)
    assert [x.dtype for x in made.out_avals] == [jnp.float32]
    softmaxes = [
        x.outvars[0].aval.dtype for x in _equations(made.jaxpr) if x.primitive.name == "exp"
    ]
    assert set(softmaxes) <= {jnp.dtype("float32")}
    assert bool(softmaxes) == ("vit" in name)


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.mark.parametrize("name", _FEATURED)
def test_a_block_is_computed_again_where_that_is_asked_for(name: str) -> None:
    """A block each; nowhere else, and in training as well."""
    found, variables = [], _variable_shapes(name, 7, jnp.bfloat16, shallow=True)
    for again in (False, True):
        model = create_model(name, 7, remat=again).clone(**_FEATURED[name])
        call = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        made = jax.make_jaxpr(call)(variables, _IMAGES)
        found.append(sum(x.primitive.name in ("remat", "checkpoint", "remat2") for x in made.eqns))
    blocks = sum(key.startswith("blocks_") for key in variables["params"])
    assert found == [0, blocks]
    assert not type(model).remat  # nobody asks for it by saying nothing


@pytest.mark.parametrize("name", ["resnet8", "resnet14_bottleneck"])
def test_stages_have_a_width_each(name: str) -> None:
    model = create_model(name, 7).clone(stage_sizes=(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="shorter"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), _IMAGES)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet33'.*resnet20, resnet32, resnet34_3x3, mlp"):
        create_model("resnet33", 10)
    with pytest.raises(ValueError, match="at least 1 class"):
        create_model("mlp", 0)


def test_cifar_type_initialisation() -> None:
    """Kaiming normal over the fan in, also in the classifier, whose bias is U(+-1/8)."""
    params = _initialise("resnet32", 100, stage_sizes=(1, 1, 1))
    _assert_normal(params["stem"]["kernel"], math.sqrt(2 / 27))
    _assert_normal(params["blocks_0"]["conv1"]["kernel"], math.sqrt(2 / (9 * 16)))
    _assert_normal(params["blocks_1"]["conv2"]["kernel"], math.sqrt(2 / (9 * 32)))
    _assert_normal(params["blocks_2"]["conv2"]["kernel"], math.sqrt(2 / (9 * 64)))
    _assert_normal(params["head"]["kernel"], math.sqrt(2 / 64))
    _assert_uniform(params["head"]["bias"], 1 / 8)
    assert np.all(params["stem_norm"]["scale"] == 1) and np.all(params["stem_norm"]["bias"] == 0)


def test_resnet34_initialisation() -> None:
    """Kaiming normal over the fan out, but PyTorch's defaults in the stem and the classifier."""
    params = _initialise("resnet34_3x3", 100, stage_sizes=(1, 1), widths=(64, 128))
    _assert_uniform(params["stem"]["kernel"], 1 / math.sqrt(27))
    _assert_normal(params["blocks_1"]["conv1"]["kernel"], math.sqrt(2 / (9 * 128)))
    _assert_normal(params["blocks_1"]["conv_shortcut"]["kernel"], math.sqrt(2 / 128))
    _assert_normal(params["blocks_0"]["conv2"]["kernel"], math.sqrt(2 / (9 * 64)))
    _assert_uniform(params["head"]["kernel"], 1 / math.sqrt(128))
    _assert_uniform(params["head"]["bias"], 1 / math.sqrt(128))


def test_bottleneck_initialisation() -> None:
    """As torchvision: Kaiming normal over the fan out, PyTorch's default in the classifier."""
    params = _initialise(
        "resnext50_32x4d", 100, stage_sizes=(1, 1), widths=(256, 512), inner_widths=(128, 256)
    )
    _assert_normal(params["stem"]["kernel"], math.sqrt(2 / (49 * 64)))
    _assert_normal(params["blocks_1"]["conv2"]["kernel"], math.sqrt(2 / (9 * 256)))
    _assert_normal(params["blocks_1"]["conv3"]["kernel"], math.sqrt(2 / 512))
    _assert_normal(params["blocks_1"]["conv_shortcut"]["kernel"], math.sqrt(2 / 512))
    _assert_uniform(params["head"]["kernel"], 1 / math.sqrt(512))
    _assert_uniform(params["head"]["bias"], 1 / math.sqrt(512))


def test_initialisation_without_convolutions() -> None:
    """The MLP's kernels are Kaiming normal, the ViT's of deviation 0.02; biases are zero."""
    params = _initialise("mlp", 100)
    for layer, width in (("hidden_0", 192), ("hidden_1", 128), ("head", 128)):
        _assert_normal(params[layer]["kernel"], math.sqrt(2 / width))
        assert not params[layer]["bias"].any()
    params = _initialise("vit_ti4", 100, depth=1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("kernel", "positions"):
            _assert_normal(leaf, 0.02)
        else:
            assert np.all(leaf == (path[-1].key == "scale")), path


def _initialise(name: str, num_classes: int, **changes: Any) -> Any:
    model = create_model(name, num_classes).clone(**changes)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"])
    return jax.tree.map(np.asarray, init(_KEY))


def _fresh(module: Any, x: Any) -> Any:
    """Drawn kernels, norms and statistics as they start, from no program."""
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)
    draw = np.random.default_rng(1)

    def leaf(path: Any, x: Any) -> Any:
        if path[-1].key == "kernel":
            return np.float32(draw.normal(scale=0.5, size=x.shape))
        return np.full(x.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _normal(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _assert_normal(kernel: np.ndarray, std: float) -> None:
    # Five standard errors of a sample standard deviation.
    assert abs(kernel.std() / std - 1) < 5 / math.sqrt(2 * kernel.size)
    if kernel.size > 9000:
        assert kernel.max() > 3 * std, "truncated"


def _assert_uniform(values: np.ndarray, bound: float) -> None:
    assert np.abs(values).max() <= bound
    assert values.max() > 0.9 * bound and values.min() < -0.9 * bound
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(2 * values.size)


def test_pad_shortcut_subsamples_and_adds_channels_on_both_sides() -> None:
    x = np.arange(2 * 5 * 4 * 8, dtype=np.float32).reshape(2, 5, 4, 8)
    y = np.asarray(pad_shortcut(jnp.asarray(x), 16, 2))
    assert y.shape == (2, 3, 2, 16)
    np.testing.assert_array_equal(y[..., 4:12], x[:, ::2, ::2])
    assert not y[..., :4].any() and not y[..., 12:].any()


@pytest.mark.parametrize("shortcut", ["pad", "project"])
def test_strided_block_against_a_hand_computation(shortcut: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    block = BasicBlock(8, 2, shortcut, jax.nn.initializers.normal(0.5))
    variables = _fresh(block, x)
    got = jax.jit(functools.partial(block.apply, train=False))(variables, x)

    params = variables["params"]
    kernels = {name: np.asarray(params[name]["kernel"]) for name in params if "conv" in name}
    scale = 1 / math.sqrt(1 + 1e-5)  # fresh running statistics: mean 0, variance 1
    y = np.maximum(_convolve(x, kernels["conv1"], 2) * scale, 0)
    y = _convolve(y, kernels["conv2"], 1) * scale
    if shortcut == "pad":
        shortcut_value = np.zeros((2, 3, 3, 8))
        shortcut_value[..., 2:6] = x[:, ::2, ::2]
    else:
        shortcut_value = np.einsum("bhwi,io->bhwo", x[:, ::2, ::2], kernels["conv_shortcut"][0, 0])
        shortcut_value *= scale
    np.testing.assert_allclose(got, np.maximum(y + shortcut_value, 0), rtol=1e-4, atol=1e-4)


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """3x3 cross-correlation with one pixel of zeros on every side, window by window."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), kernel.shape[-1]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("bhwi,hwio->bo", window, kernel)
    return out


def test_batch_statistics_move_by_a_tenth() -> None:
    """Momentum 0.9 of the old value, and the biased variance (PyTorch's is unbiased)."""
    model = create_model("resnet8", 3).clone(stage_sizes=(0,), widths=(4,))  # the stem alone
    images = _normal(4, 8, 8, 3)
    variables = _fresh(model, images)
    _, updates = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
        variables, images
    )
    activations = _convolve(images, np.asarray(variables["params"]["stem"]["kernel"]), 1)
    got = updates["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(got["mean"], 0.1 * activations.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(got["var"], 0.9 + 0.1 * activations.var((0, 1, 2)), rtol=1e-4)


def test_strided_bottleneck_block_against_a_hand_computation() -> None:
    """Two groups, the stride in the 3x3 convolution, a projection on the shortcut."""
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)
    block = BottleneckBlock(8, 6, 2, 2)
    variables = _fresh(block, x)
    got = jax.jit(functools.partial(block.apply, train=False))(variables, x)

    params = variables["params"]
    kernels = {name: np.asarray(params[name]["kernel"]) for name in params if "conv" in name}
    assert kernels["conv2"].shape == (3, 3, 3, 6)
    scale = 1 / math.sqrt(1 + 1e-5)  # fresh running statistics: mean 0, variance 1
    y = np.maximum(x @ kernels["conv1"][0, 0] * scale, 0)
    halves = [_convolve(y[..., g], kernels["conv2"][..., g], 2) for g in (np.s_[:3], np.s_[3:])]
    y = np.maximum(np.concatenate(halves, axis=-1) * scale, 0)
    y = y @ kernels["conv3"][0, 0] * scale
    shortcut = x[:, ::2, ::2] @ kernels["conv_shortcut"][0, 0] * scale
    np.testing.assert_allclose(got, np.maximum(y + shortcut, 0), rtol=1e-4, atol=1e-4)


_SHORT: dict[str, dict[str, Any]] = {
    "resnet8": {"stage_sizes": (1, 1), "widths": (8, 16)},
    "resnet14_bottleneck": {"stage_sizes": (1, 1), "widths": (16, 32), "inner_widths": (4, 8)},
    "resnet32_gn": {"stage_sizes": (1, 1), "widths": (8, 16)},
    "vit_ti4": {"depth": 1, "width": 48},
}


def _filled(model: Any, images: jax.Array) -> Any:
    """Random variables from no program: compiling an initialiser takes longer than a test."""
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    draw = np.random.default_rng(0)
    # Vectors are positive, as there are variances among them.
    return jax.tree.map(
        lambda x: np.float32((x.ndim == 1) + draw.uniform(-0.4, 0.4, x.shape)), shapes
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        pytest.param("resnet14_bottleneck", marks=pytest.mark.slow),
        pytest.param("vit_ti4", marks=pytest.mark.slow),
    ],
)
def test_remat_changes_nothing_but_the_memory(name: str) -> None:
    def loss(model: Any, params: Any) -> Any:
        logits, updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(logits)), (logits, updates)

    def stored(model: Any) -> int:
        """Numbers that the forward pass keeps for the backward pass."""
        keep = jax.eval_shape(
            lambda params: jax.vjp(functools.partial(loss, model), params, has_aux=True)[1],
            variables["params"],
        )
        return sum(x.size for x in jax.tree.leaves(keep))

    plain, again = (create_model(name, 3, remat=on).clone(**_SHORT[name]) for on in (False, True))
    images = _normal(4, 16, 16, 3)
    variables = _filled(plain, images)
    jax.tree.map(np.testing.assert_array_equal, _filled(again, images), variables)
    assert stored(again) < 0.6 * stored(plain)
    want, got = (
        jax.jit(jax.value_and_grad(functools.partial(loss, model), has_aux=True))(
            variables["params"]
        )
        for model in (plain, again)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)
    embed = functools.partial(again.apply, train=False, method="embed")
    assert jax.eval_shape(embed, variables, images).shape[0] == 4


def test_remat_draws_the_same_initial_weights() -> None:
    plain, again = (
        jax.jit(functools.partial(model.clone(**_SHORT["resnet8"]).init, train=False))(
            _KEY, jnp.zeros((1, 8, 8, 3))
        )
        for model in (create_model("resnet8", 3), create_model("resnet8", 3, remat=True))
    )
    jax.tree.map(np.testing.assert_array_equal, again, plain)


def test_remat_needs_blocks() -> None:
    with pytest.raises(ValueError, match="'mlp' has no blocks to compute again: leave --remat out"):
        create_model("mlp", 3, remat=True)


@pytest.mark.parametrize("name", ["resnet32_gn", "vit_ti4"])
def test_rows_stay_independent_without_batch_normalisation(name: str) -> None:
    """In training too, and whatever the axis name, as there is no collective to name it."""
    model = create_model(name, 3, axis_name="nowhere").clone(**_SHORT[name])
    images = _normal(4, 8, 8, 3)
    variables = _filled(model, images)
    assert set(variables) == {"params"}
    apply = jax.jit(functools.partial(model.apply, train=True))
    together = apply(variables, images)
    alone = apply(variables, np.concatenate([images[:1], images[1:] ** 2]))
    np.testing.assert_allclose(alone[:1], together[:1], rtol=1e-4, atol=1e-5)
    assert np.abs(alone[1:] - together[1:]).max() > 1e-3


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match='"batch" or "group"'):
        _initialise("resnet8", 3, norm="layer")


def test_axis_name_makes_two_halves_one_batch() -> None:
    def apply(model: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    images = _normal(4, 8, 8, 3)
    whole, halves = (
        create_model("resnet8", 3, axis_name=axis).clone(**_SHORT["resnet8"])
        for axis in (None, "batch")
    )
    variables = _filled(whole, images)
    expected = jax.jit(functools.partial(apply, whole))(images)
    mapped = jax.jit(jax.vmap(functools.partial(apply, halves), axis_name="batch"))
    logits, updates = mapped(images.reshape(2, 2, 8, 8, 3))
    np.testing.assert_allclose(logits.reshape(4, 3), expected[0], rtol=1e-3, atol=1e-4)
    for half in range(2):
        jax.tree.map(
            lambda got, want, half=half: np.testing.assert_allclose(
                got[half], want, rtol=1e-4, atol=1e-5
            ),
            updates,
            expected[1],
        )


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 2)])
def test_max_pooling_is_flaxs_with_its_gradient(shape):
    """Ties and all: whole numbers, of which every window has several largest."""
    draw = np.random.default_rng(0)
    x = draw.integers(-3, 4, shape).astype(np.float32)
    rows, columns = -(-shape[1] // 2), -(-shape[2] // 2)
    at = draw.integers(-5, 5, (shape[0], rows, columns, shape[3])).astype(np.float32)

    def flaxs(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x):
        found, back = jax.vjp(f, x)
        return found, back(at)[0]

    for found, expected in zip(both(max_pool, x), both(flaxs, x), strict=True):
        np.testing.assert_array_equal(found, expected)
    x[0, 3, 3, 0] = np.nan
    broken = np.isnan(both(max_pool, x)[0])
    assert broken.sum() == 4 and broken[0, 1:3, 1:3, 0].all()
