"""Class-conditional SAM: its own door against the slow transcription, and what must stay true."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import imbsam_jax as ij
import reference
from imbsam_jax import cc_sam, schedules
from rule_table import to_library, to_reference

COUNTS = np.array([40, 25, 9, 4, 2])
CLASSES, FEATURES, HIDDEN = len(COUNTS), 5, 7
PHI = 0.3

Params = reference.Params


def features_fn(params: Any, x: Any, y: Any) -> tuple[jax.Array, str]:
    del y
    return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]), None


def logits_of(params: Any, features: Any) -> jax.Array:
    return features @ params["head"]["kernel"] + params["head"]["bias"][None]


def head_losses_fn(params: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    del x
    logits = logits_of(params, features)
    return ij.losses.cross_entropy(logits, y), logits


def init(dtype: Any = None, seed: int = 0) -> Any:
    return to_library(reference.init_params(seed, FEATURES, HIDDEN, CLASSES), dtype)


def one_batch(size: int = 7, seed: int = 1) -> tuple[Any, Any]:
    return reference.make_batches(seed, COUNTS, [size], ["mixed"], eta=9, features=FEATURES)[0]


# Many small programs, each run once or twice: what LLVM would gain is less than it takes.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(**options: Any) -> Callable[..., Any]:
    return cc_sam.value_and_grad(features_fn, head_losses_fn, COUNTS, **options)


@cache
def made(**options: Any) -> Callable[..., Any]:
    """Compiled, and shared by the tests that ask for the same."""
    return quick(make(**options))


@quick
def sgd_grads(params: Any, x: Any, y: Any) -> Any:
    def mean_loss(p: Any) -> jax.Array:
        return head_losses_fn(p, features_fn(p, x, y)[0], x, y)[0].mean()

    return jax.grad(mean_loss)(params)


# ------------------------------------------------------------------------- against the reference

VARIANTS: dict[str, tuple[dict[str, Any], Callable[..., Params]]] = {
    "paper": ({}, partial(reference.cc_sam_gradient, perturb="classifier")),
    "paper-two_at_once": (
        {"classes_at_once": 2},
        partial(reference.cc_sam_gradient, perturb="classifier"),
    ),
    "paper-all": ({"perturb": "all"}, partial(reference.cc_sam_gradient, perturb="all")),
    "paper-all-at_once": (
        {"perturb": "all", "classes_at_once": 5},
        partial(reference.cc_sam_gradient, perturb="all"),
    ),
    "release": (
        {"variant": "release", "flat_ratio": PHI},
        partial(reference.cc_sam_release_gradient, noise_ratio=1.0, flat_ratio=PHI),
    ),
    "release-one_at_once": (
        {"variant": "release", "noise_ratio": 0.5, "classes_at_once": 1},
        partial(reference.cc_sam_release_gradient, noise_ratio=0.5, flat_ratio=0.5),
    ),
}
SIZES = (8,) * 9 + (5,)
KINDS = ("mixed", "no_tail", "mixed", "only_tail", "mixed") * 2


@cache
def trajectory(name: str, soft: bool) -> list[Params]:
    gradient = VARIANTS[name][1]
    return reference.train(
        lambda p, x, y, step: gradient(p, x, y, class_counts=COUNTS),
        reference.init_params(0, FEATURES, HIDDEN, CLASSES),
        batches(soft),
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-3,
    )


def batches(soft: bool) -> list[Any]:
    pairs = reference.make_batches(3, COUNTS, SIZES, KINDS, eta=9, features=FEATURES)
    if not soft:
        return pairs
    rng = np.random.default_rng(4)
    mixed = []
    for x, y in pairs:
        one_hot = reference.soft_labels(y, CLASSES)
        mixed.append((x, 0.7 * one_hot + 0.3 * one_hot[rng.permutation(len(y))]))
    return mixed


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "soft", "padded"),
    [
        ("paper", False, False),
        ("paper-two_at_once", True, True),
        ("paper-all", True, True),
        ("paper-all-at_once", False, True),
        ("release", False, True),
        ("release-one_at_once", False, True),
    ],
)
def test_ten_steps_equal_the_transcription(name: str, soft: bool, padded: bool) -> None:
    f = made(**VARIANTS[name][0])
    params = jax.tree.map(np.asarray, init())
    velocity = jax.tree.map(np.zeros_like, params)
    for (x, y), expected in zip(batches(soft), trajectory(name, soft), strict=True):
        mask = None
        if padded:
            x, y, mask = with_padding(x, y, 11)
        (_, _), grads = jax.device_get(f(params, y, x, y, mask=mask))
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 1e-3 * p, velocity, grads, params)
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
        chex.assert_trees_all_close(to_reference(params), expected, rtol=0, atol=1e-10)


def with_padding(x: Any, y: Any, room: int) -> tuple[Any, Any, Any]:
    """The rows scattered among garbage; a garbage row of hard labels is of no class."""
    where = np.sort(np.random.default_rng(0).permutation(room)[: len(x)])
    wide_x = np.full((room, FEATURES), 100.0)
    wide_y = np.full((room, *y.shape[1:]), -1, y.dtype)
    mask = np.zeros(room, bool)
    wide_x[where], wide_y[where], mask[where] = x, y, True
    return wide_x, wide_y, mask


@pytest.mark.usefixtures("x64")
def test_the_release_mixes_inputs_but_not_the_label_of_the_perturbed_loss() -> None:
    x, first = one_batch(size=8)
    second, lam = first[::-1].copy(), 0.7
    target = lam * reference.soft_labels(first, CLASSES)
    target += (1 - lam) * reference.soft_labels(second, CLASSES)
    params = reference.init_params(0, FEATURES, HIDDEN, CLASSES)

    # By hand: the mixed loss gives the class's direction and the plain part.
    norm_w = np.sqrt((params["w2"] ** 2).sum() + (params["b2"] ** 2).sum())
    k = params["w2"].size + params["b2"].size
    ones = np.ones(len(x)) / len(x)
    expected = reference.scale(1 - PHI, reference.weighted_gradient(params, x, target, ones))
    for c in np.unique(first):
        rows = first == c
        mean = np.ones(rows.sum()) / rows.sum()
        g = reference.weighted_gradient(params, x[rows], target[rows], mean)
        e = {}
        for name in ("w2", "b2"):
            length = np.sqrt((g[name] ** 2).sum())
            radius = np.sqrt(norm_w / (2 * length)) * (k / (COUNTS[c] - 1)) ** 0.25
            e[name] = radius * g[name] / length
        moved = reference.add(params, e)
        part = reference.weighted_gradient(moved, x[rows], first[rows], ones[rows])
        expected = reference.add(expected, reference.scale(PHI, part))

    def mixed_fn(p: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
        soft = jnp.asarray(target, features.dtype)
        return ij.losses.cross_entropy(logits_of(p, features), soft), None

    f = cc_sam.value_and_grad(
        features_fn, mixed_fn, COUNTS,
        variant="release", flat_ratio=PHI, perturbed_losses_fn=head_losses_fn,
    )  # fmt: skip
    _, grads = quick(f)(to_library(params), first, x, first)
    chex.assert_trees_all_close(to_reference(grads), expected, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------- limits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "options",
    [
        {"noise_ratio": 0.0, "perturb": "all"},
        {"flat_ratio": 0.0, "variant": "release"},
    ],
)
def test_no_noise_or_no_perturbed_part_is_sgd(options: Any) -> None:
    x, y = one_batch()
    (loss, (_, logits)), grads = made(**options)(init(), y, x, y)
    chex.assert_trees_all_close(grads, sgd_grads(init(), x, y), rtol=1e-12)
    expected = reference.per_example_losses(to_reference(init()), x, y)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-12)
    assert logits.shape == (len(x), CLASSES)  # the clean pass's


@pytest.mark.parametrize(("variant", "perturb"), [("paper", "classifier"), ("release", "all")])
def test_a_zero_gradient_perturbs_nothing(variant: Any, perturb: Any) -> None:
    def flat(params: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
        return 0 * head_losses_fn(params, features, x, y)[0] + 1, None

    x, y = one_batch()
    f = cc_sam.value_and_grad(features_fn, flat, COUNTS, variant=variant, perturb=perturb)
    (loss, _), grads = quick(f)(init(jnp.float32), y, np.float32(x), y)
    assert float(loss) == 1
    chex.assert_trees_all_equal(grads, jax.tree.map(np.zeros_like, grads))


def test_a_tiny_gradient_stays_finite() -> None:
    def tiny(params: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
        return 1e-25 * head_losses_fn(params, features, x, y)[0], None

    x, y = one_batch()  # the squares of these gradients are 0 in float32
    f = cc_sam.value_and_grad(features_fn, tiny, COUNTS)
    _, grads = quick(f)(init(jnp.float32), y, np.float32(x), y)
    chex.assert_tree_all_finite(grads)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.usefixtures("x64")
def test_what_is_not_finite_is_not_hidden() -> None:
    x, y = one_batch()
    x[3, 0] = np.nan
    _, grads = made()(init(), y, x, y)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"perturb": "all"}, {"variant": "release"}])
def test_one_class_in_the_batch(options: Any) -> None:
    x, _ = one_batch()
    y = np.full(len(x), 3)
    gradient = (
        partial(reference.cc_sam_release_gradient, noise_ratio=1.0, flat_ratio=0.5)
        if options.get("variant")
        else partial(reference.cc_sam_gradient, perturb=options.get("perturb", "classifier"))
    )
    _, grads = made(**options)(init(), y, x, y)
    expected = gradient(to_reference(init()), x, y, class_counts=COUNTS)
    chex.assert_trees_all_close(to_reference(grads), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"perturb": "all"}, {"variant": "release"}])
def test_a_label_of_no_class_gives_nan(options: Any) -> None:
    x, y = one_batch()
    f = made(**options)
    for label in (-1, CLASSES, 99):
        for labels in (np.where(np.arange(len(y)) == 2, label, y), np.full(len(y), label)):
            _, grads = f(init(), labels, x, y)
            assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.usefixtures("x64")
def test_a_batch_of_padding_alone_changes_nothing() -> None:
    x, y = one_batch(size=12)
    f = made(variant="release")
    (loss, _), grads = f(init(), y, x, y, mask=np.zeros(12, bool))
    assert float(loss) == 0
    chex.assert_trees_all_equal(grads, jax.tree.map(np.zeros_like, grads))


# ---------------------------------------------------------------------------- the door's manners


@pytest.mark.parametrize("options", [{}, {"perturb": "all"}, {"variant": "release"}])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.filterwarnings("ignore:parameter .* is bfloat16")
def test_shapes_and_dtypes(options: Any, dtype: Any) -> None:
    x, y = one_batch()
    params, x = init(dtype), jnp.asarray(x, dtype)
    (loss, aux), grads = jax.eval_shape(make(**options), params, y, x, y)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (aux[0], aux[1].shape) == (None, (len(y), CLASSES))


def test_bfloat16_parameters_warn() -> None:
    x, y = one_batch()
    with pytest.warns(UserWarning, match="bfloat16"):
        jax.eval_shape(make(), init(jnp.bfloat16), y, jnp.asarray(x, jnp.bfloat16), y)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"perturb": "all"}, {"variant": "release"}])
def test_other_labels_compile_nothing_new(options: Any) -> None:
    f = made(**options)
    programs = set()
    for seed in (1, 2, 3):  # other classes in the batch, and another number of them
        x, y = one_batch(seed=seed)
        chex.assert_tree_all_finite(f(init(), y, x, y)[1])
        programs.add(f._cache_size())
    assert len(programs) == 1


def program(**options: Any) -> str:
    x, y = one_batch()
    return str(jax.make_jaxpr(lambda p: make(**options)(p, y, x, y, step=10))(init()))


@pytest.mark.usefixtures("x64")
def test_noise_ratio_may_be_traced_or_a_schedule() -> None:
    x, y = one_batch()
    traced = quick(lambda ratio: make(noise_ratio=ratio)(init(), y, x, y)[1])
    chex.assert_trees_all_close(traced(1.0), made()(init(), y, x, y)[1], rtol=1e-12)
    schedule = schedules.step_radius((0.1, 0.4), (2,), steps_per_epoch=5)
    assert program(noise_ratio=schedule) == program(noise_ratio=0.4)
    with pytest.raises(ValueError, match="pass step="):
        make(noise_ratio=schedule)(init(), y, x, y)


@pytest.mark.usefixtures("x64")
def test_the_classifier_by_name_by_mask_or_by_function() -> None:
    mask = {"hidden": False, "head": {"kernel": True, "bias": True}}
    for classifier in (mask, {"hidden": False, "head": True}, lambda params: mask):
        assert program(classifier=classifier) == program()
    # The rest of the head, too, gets its gradient at the moved kernel.
    x, y = one_batch()
    part = {"hidden": False, "head": {"kernel": True, "bias": False}}
    bias = quick(make(classifier=part))(init(), y, x, y)[1]["head"]["bias"]
    assert np.abs(bias - sgd_grads(init(), x, y)["head"]["bias"]).max() > 1e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{"perturb": "all"}, {"variant": "release"}])
def test_the_batch_over_devices(options: Any) -> None:
    x, y = one_batch(size=12)
    mask = np.arange(12) % 5 != 1
    x, y = jnp.asarray(x), jnp.asarray(y)
    (loss, _), whole = made(**options)(init(), y, x, y, mask=mask)

    def over_devices(**more: Any) -> Any:
        f = make(**options, axis_name="batch", **more)
        spread = [part.reshape(3, 4, *part.shape[1:]) for part in (x, y, jnp.asarray(mask))]

        def on_device(x: Any, y: Any, mask: Any) -> Any:
            (loss, _), grads = f(init(), y, x, y, mask=mask)
            return loss, grads

        return quick(jax.vmap(on_device, axis_name="batch"))(*spread)

    synced = over_devices()
    for index in range(3):
        result = jax.tree.map(lambda leaf, i=index: leaf[i], synced)
        chex.assert_trees_all_close(result, (loss, whole), rtol=1e-12)
    if options == {"variant": "release"}:
        _, apart = over_devices(sync_ascent=False)
        assert float(np.abs(apart["head"]["kernel"][0] - whole["head"]["kernel"]).max()) > 1e-6
        chex.assert_tree_all_finite(apart)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("options", "more", "check_vma"),
    [
        ({}, {"classes_at_once": 2}, True),
        ({}, {"classes_at_once": 2}, False),
        ({"perturb": "all"}, {}, True),
        ({"variant": "release"}, {"sync_ascent": False}, True),
    ],
)
def test_inside_shard_map(options: Any, more: Any, check_vma: bool) -> None:
    x, y = one_batch()
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    f = make(**options, **more, axis_name="batch")
    batch, same = PartitionSpec("batch"), PartitionSpec()

    @quick
    @partial(
        jax.shard_map, mesh=mesh, in_specs=(same, batch, batch), out_specs=same, check_vma=check_vma
    )
    def step(params: Any, x: Any, y: Any) -> Any:
        (loss, _), grads = f(params, y, x, y)
        return loss, grads

    (loss, _), grads = made(**options)(init(), y, x, y)
    chex.assert_trees_all_close(step(init(), x, y), (loss, grads), rtol=1e-12)


# ------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "papers"}, "'paper' or 'release'"),
        ({"perturb": "some"}, "'classifier' or 'all'"),
        ({"noise_ratio": -1.0}, "noise_ratio must be finite and at least 0"),
        ({"noise_ratio": np.nan}, "noise_ratio"),
        ({"flat_ratio": 1.5}, "flat_ratio must be between 0 and 1"),
        ({"classes_at_once": 0}, "classes_at_once"),
    ],
)
def test_bad_options_are_refused_when_built(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_class_of_one_example_is_named() -> None:
    with pytest.raises(ValueError, match="class 2 has 1 example"):
        cc_sam.value_and_grad(features_fn, head_losses_fn, [9, 2, 1, 1])
    with pytest.raises(ValueError, match="class 1 has count 0"):
        cc_sam.value_and_grad(features_fn, head_losses_fn, [9, 0])


def test_bad_calls_are_refused() -> None:
    x, y = one_batch()
    params, x = init(jnp.float32), jnp.asarray(x, jnp.float32)
    with pytest.raises(ValueError, match=r"no parameter lies under 'fc'.*head, hidden"):
        make(classifier="fc")(params, y, x, y)
    with pytest.raises(ValueError, match="marks no parameter"):
        make(classifier={"hidden": False, "head": False})(params, y, x, y)
    soft = np.full((len(y), CLASSES), 0.2, np.float32)
    with pytest.raises(ValueError, match="release groups rows by one class"):
        make(variant="release")(params, soft, x, soft)
    with pytest.raises(ValueError, match="soft labels have 4 classes"):
        make()(params, soft[:, :4], x, soft)
    with pytest.raises(TypeError, match="features_fn must return a pair"):
        cc_sam.value_and_grad(lambda *a: features_fn(*a)[0], head_losses_fn, COUNTS)(
            params, y, x, y
        )
    with pytest.raises(ValueError, match="already averaged"):
        cc_sam.value_and_grad(features_fn, lambda *a: (head_losses_fn(*a)[0].mean(), None), COUNTS)(
            params, y, x, y
        )


# ------------------------------------------------------------------------------ the second stage


def adversarial_by_hand(
    head: Params, z: Any, y: Any, share: float, variant: str, strength: float, real: Any
) -> tuple[Any, Any]:
    """(losses, features at which the adversarial part is taken), class by class in NumPy."""

    def losses_at(z: Any) -> Any:
        target = reference.soft_labels(y, CLASSES)
        return -(target * reference.log_softmax(z @ head["w2"] + head["b2"])).sum(axis=1)

    p = np.exp(reference.log_softmax(z @ head["w2"] + head["b2"]))
    d = (p - reference.soft_labels(y, CLASSES)) @ head["w2"].T * real[:, None]
    moved, u = z.copy(), np.ones(len(y))
    if variant == "paper":
        for i in np.flatnonzero(real):
            moved[i] += strength * d[i] / np.sqrt((d[i] ** 2).sum())
    else:
        u = np.log(COUNTS.max() / COUNTS + 0.01)[y] / 2
        for c in np.unique(y[real]):
            rows = (y == c) & real
            moved[rows] += strength * u[rows][0] * d[rows] / np.sqrt((d[rows] ** 2).sum())
    return (1 - share) * losses_at(z) + share * u * losses_at(moved), moved


def head_only(head: Any, z: Any, y: Any) -> tuple[jax.Array, Any]:
    logits = z @ head["kernel"] + head["bias"][None]
    return ij.losses.cross_entropy(logits, y), logits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_feature_adversary_equals_the_formula(variant: Any) -> None:
    rng = np.random.default_rng(0)
    params = reference.init_params(0, FEATURES, HIDDEN, CLASSES)
    z, y = rng.normal(size=(9, HIDDEN)), rng.integers(CLASSES, size=9)
    real = np.arange(9) % 4 != 2
    expected, moved = adversarial_by_hand(params, z, y, 0.3, variant, 0.8, real)
    u = np.log(COUNTS.max() / COUNTS + 0.01)[y] / 2 if variant == "release" else np.ones(9)
    losses_fn = cc_sam.feature_adversary(head_only, COUNTS, variant=variant, strength=0.8)

    def mean_loss(head: Any, share: Any) -> Any:
        losses, logits = losses_fn(head, y, jnp.asarray(z), y, share=share, mask=real)
        return losses[real].sum(), (losses, logits)

    # The gradient takes the moved features as they are: nothing flows through the noise.
    def with_constant_noise(head: Any) -> Any:
        there = head_only(head, jnp.asarray(moved), y)[0]
        return (0.7 * head_only(head, jnp.asarray(z), y)[0] + 0.3 * u * there)[real].sum()

    def both(head: Any, share: Any) -> Any:
        return jax.grad(mean_loss, has_aux=True)(head, share), jax.grad(with_constant_noise)(head)

    (grads, (losses, logits)), constant = quick(both)(to_library(params)["head"], 0.3)
    np.testing.assert_allclose(losses[real], expected[real], rtol=1e-12)
    np.testing.assert_allclose(logits, z @ params["w2"] + params["b2"], rtol=1e-12)
    chex.assert_trees_all_close(grads, constant, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_feature_adversary_goes_with_any_rule(variant: Any) -> None:
    z = np.random.default_rng(0).normal(size=(6, HIDDEN))
    y = np.array([0, 4, 1, 4, 2, 0])
    adversarial = cc_sam.feature_adversary(head_only, COUNTS, variant=variant)

    def losses_fn(head: Any, z: Any, y: Any, share: Any) -> Any:
        return adversarial(head, y, z, y, share=share)

    f = quick(ij.value_and_grad(losses_fn, ij.rules.imbsam(COUNTS, rho=0.1, eta=9)))
    (loss, _), grads = f(init()["head"], y, z, y, 0.5)
    chex.assert_tree_all_finite((loss, grads))
    # Share 0 is the plain loss.
    params = reference.init_params(0, FEATURES, HIDDEN, CLASSES)
    by_hand, _ = adversarial_by_hand(params, z, y, 0.0, "paper", 1.0, np.ones(6, bool))
    np.testing.assert_allclose(f(init()["head"], y, z, y, 0.0)[0][0], by_hand.mean(), rtol=1e-12)


def test_feature_adversary_is_finite_at_zero_and_tiny_gradients() -> None:
    y = np.array([0, 1, 1])
    z = jnp.ones((3, HIDDEN), jnp.float32)
    head = {"kernel": jnp.zeros((HIDDEN, CLASSES)), "bias": jnp.zeros(CLASSES)}
    tiny = {"kernel": 1e-25 * init(jnp.float32)["head"]["kernel"], "bias": head["bias"]}
    for variant in ("paper", "release"):
        adversarial = cc_sam.feature_adversary(head_only, COUNTS, variant=variant)
        losses_fn = quick(partial(adversarial, share=1.0))
        for params in (head, tiny):
            chex.assert_tree_all_finite(losses_fn(params, y, z, y)[0])

    # A gradient of 1e-25 is a direction like any other: the step has the length asked for.
    def features_seen(params: Any) -> Any:
        seen = []

        def record(params: Any, z: Any, y: Any) -> tuple[jax.Array, None]:
            seen.append(z)
            return head_only(params, z, y)[0], None

        cc_sam.feature_adversary(record, strength=0.5)(params, y, z, y, share=1.0)
        return seen[-1]

    steps = np.asarray(quick(features_seen)(tiny) - z)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.5, rtol=1e-5)


def test_feature_adversary_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="give class_counts"):
        cc_sam.feature_adversary(head_only, variant="release")
    with pytest.raises(ValueError, match="strength"):
        cc_sam.feature_adversary(head_only, strength=-1.0)
    with pytest.raises(ValueError, match="divisor"):
        cc_sam.feature_adversary(head_only, COUNTS, variant="release", divisor=0.0)
    adversarial = cc_sam.feature_adversary(head_only)
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        adversarial({}, np.array([0]), jnp.ones((1, 2)), share=1.1)
