"""One step under each method against the library itself."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.step import methods
from experiments.step.objectives import Adversary, Objective
from experiments.step.passing import Passing
from experiments.step.state import merge, split
from imbsam_jax import Ascent, cc_sam, losses, rules, value_and_grad
from rule_table import RULES, row_id
from tiny import COUNTS

pytestmark = pytest.mark.allow_rank_promotion  # Flax's bias and batch normalisation


def moved_by(state, after):
    """The gradient of a step with learning rate 0.1, no momentum and no decay."""
    return jax.tree.map(lambda old, new: (old - new) / 0.1, state.params, after.params)


def assert_close(found, expected, tolerance=2e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def logits_of(state, params, images):
    variables = {"params": params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.slow
def test_a_rule_in_two_halves_is_the_rule(one_step):
    state, images, labels, run = one_step
    rule = rules.imbsam(COUNTS, rho=0.5, eta=10)

    def losses_fn(params):
        logits, _ = logits_of(state, params, images)
        return losses.cross_entropy(logits, labels), None

    _, expected = value_and_grad(losses_fn, rule, ascent=Ascent(p=3.0))(state.params, labels)
    method = methods.Tabled(rule, Ascent(p=3.0))
    after, _ = run(method, Objective(losses.cross_entropy, 5))
    assert_close(moved_by(state, after), expected)


@pytest.mark.parametrize("row", RULES, ids=row_id)
def test_other_numbers_leave_the_ascent_that_a_rule_brings(row):
    for _, stage in methods.Tabled(row.rule(0.1)).stages():
        given = stage.given(stage.numbers())
        assert given.ascent.of(given.rule) == stage.ascent.of(stage.rule)


def test_running_statistics_of_every_pass(one_step):
    """Updated at theta, then at theta + e; loss and accuracy stay those at theta."""
    state, images, labels, run = one_step
    rule = rules.sam(5, rho=0.5)
    objective = Objective(losses.cross_entropy, 5)
    first, seen = run(rule, objective)
    after, again = run(methods.Tabled(rule, running_statistics="every"), objective)
    jax.tree.map(np.testing.assert_array_equal, after.params, first.params)
    assert (seen.loss, seen.accuracy) == (again.loss, again.accuracy)

    @jax.jit
    def by_hand(params, batch_stats):
        gradient = jax.grad(
            lambda p: losses.cross_entropy(logits_of(state, p, images)[0], labels).mean()
        )(params)
        length = optax.tree.norm(gradient)
        there = jax.tree.map(lambda p, g: p + 0.5 * g / length, params, gradient)
        return logits_of(state.replace(batch_stats=batch_stats), there, images)[1]["batch_stats"]

    assert_close(after.batch_stats, by_hand(state.params, first.batch_stats), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_mixup_and_class_conditional_sam(one_step, variant):
    """Mixed images and labels by hand; the release perturbs for the first labels alone."""
    state, images, labels, run = one_step
    key = jax.random.fold_in(jax.random.key(1), 0)
    share_key, pair_key = jax.random.split(jax.random.fold_in(key, 2))
    share = jax.random.beta(share_key, 0.7, 0.7)
    others = jax.random.permutation(pair_key, 16)
    assert 0.05 < share < 0.95 and (others != jnp.arange(16)).any()
    mixed = share * images + (1 - share) * images[others]
    soft = share * jnp.eye(5)[labels] + (1 - share) * jnp.eye(5)[labels[others]]

    def features_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        return state.apply_fn(variables, mixed, train=True, mutable=["batch_stats"], method="embed")

    def head_fn(target):
        def fn(params, features):
            logits = state.apply_fn({"params": params}, features, method="classify")
            return losses.cross_entropy(logits, target), logits

        return fn

    release = variant == "release"
    f = cc_sam.value_and_grad(
        features_fn, head_fn(soft), COUNTS, variant=variant, noise_ratio=0.01,
        perturbed_losses_fn=head_fn(labels) if release else None,
    )  # fmt: skip
    (loss, (_, logits)), expected = f(state.params, labels if release else soft)
    method = methods.ClassConditional(COUNTS, variant=variant, noise_ratio=0.01)
    after, seen = run(method, Objective(losses.cross_entropy, 5, mixup=0.7))
    assert_close(moved_by(state, after), expected)
    np.testing.assert_allclose(seen.loss, loss, rtol=1e-5)
    hits = np.asarray(soft)[np.arange(16), np.asarray(logits).argmax(-1)].mean()
    np.testing.assert_allclose(seen.accuracy, hits, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_class_conditional_sam_of_two_matrices(variant):
    """As above, of a network without a trainer around it: what is quick to compile."""
    draw = np.random.default_rng(0)
    images, labels = draw.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 5
    soft = np.float32(0.7 * np.eye(5)[labels] + 0.3 * np.eye(5)[labels[::-1]])
    params = {
        "body": draw.normal(size=(3, 4)).astype(np.float32),
        "head": {"kernel": draw.normal(size=(4, 5)).astype(np.float32)},
    }

    def head(params, features, target):
        logits = features @ params["head"]["kernel"]
        return losses.cross_entropy(logits, target), logits

    halves = types.SimpleNamespace(
        images=images, target=soft, labels=labels, stats=3.0, mask=None,
        features=lambda params, stats, images: (images @ params["body"], stats + 1),
        losses_for=lambda target: head,
    )  # fmt: skip
    options = {"variant": variant, "noise_ratio": 0.5, "perturb": "classifier"}
    release = variant == "release"
    f = cc_sam.value_and_grad(
        lambda params: (images @ params["body"], None),
        lambda params, features: head(params, features, soft), COUNTS,
        perturbed_losses_fn=(lambda params, features: head(params, features, labels))
        if release else None, **options,
    )  # fmt: skip
    (loss, (_, logits)), expected = jax.jit(f)(params, labels if release else soft)
    method = methods.ClassConditional(COUNTS, **options)
    assert method.stages() == [(0, method)] and method.initial_extra(params) == {}
    assert (method.whole_batches, method.hands_on) == (True, False)
    found = jax.jit(lambda params: method.gradient(halves, params, {"kept": 1}, 0, None))(params)
    assert_close(found.grads, expected, 1e-6)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5)
    assert (found.stats, found.extra) == (4.0, {"kept": 1})


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("every", [False, True])
def test_a_rule_of_two_matrices(parts, every):
    """Likewise: in one batch or two micro-batches, statistics those of the first pass or of all.

    A statistic is moved on by its micro-batch's images, logits and loss are those at theta; row i
    of the batch is in micro-batch i % 2.
    """
    draw = np.random.default_rng(0)
    images, labels = draw.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 5
    params = {
        "body": draw.normal(size=(3, 4)).astype(np.float32),
        "head": draw.normal(size=(4, 5)).astype(np.float32),
    }

    def classify(params, features, target):
        logits = features @ params["head"]
        return losses.cross_entropy(logits, target), logits

    def moved(body, images):
        return body[0, :2] * images[0, 0] + images[0, 1]

    halves = types.SimpleNamespace(
        images=images, target=labels, labels=labels, stats=jnp.full(2, 3.0), mask=None,
        passes=Passing(micro_batches=parts).over(8), losses_for=lambda target: classify,
        features=lambda params, stats, images: (
            images @ params["body"], stats + moved(params["body"], images),
        ),
    )  # fmt: skip
    rule, ascent = rules.sam(5, rho=0.5), Ascent(p=3.0)

    def losses_fn(params):
        return classify(params, images @ params["body"], labels)[0], None

    @jax.jit
    def both(params):
        method = methods.Tabled(rule, ascent, "every" if every else "first")
        return (
            method.gradient(halves, params, {"kept": 1}, 0, None),
            value_and_grad(losses_fn, rule, ascent=ascent)(params, labels),
            value_and_grad(losses_fn, rules.sgd(5))(params, labels)[1],
        )

    found, ((loss, _), expected), gradients = jax.device_get(both(params))
    assert_close(found.grads, expected, 1e-5)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(found.logits, images @ params["body"] @ params["head"], rtol=1e-4)
    assert found.extra == {"kept": 1}
    # Of SAM in the p-norm, 1/p + 1/q = 1: e = rho d / ||d||_p, d = sign(g) |g|^(q - 1).
    direction = {k: np.sign(g) * np.abs(g) ** 0.5 for k, g in gradients.items()}
    length = sum((np.abs(d) ** 3).sum() for d in direction.values()) ** (1 / 3)
    bodies = [params["body"], params["body"] + 0.5 * direction["body"] / length]
    # Row 0 is the first of the first micro-batch, row 1 of the second.
    moves = [np.mean([moved(b, images[k:]) for k in range(parts)], axis=0) for b in bodies]
    np.testing.assert_allclose(found.stats, 3 + sum(moves[: 1 + every]), rtol=1e-4)


def test_passes_over_some_rows_give_the_logits_of_all():
    """In the order of the batch, as they come: there are no micro-batches to be joined."""
    draw = np.random.default_rng(0)
    images, labels = draw.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 5
    kernel = draw.normal(size=(3, 5)).astype(np.float32)

    def classify(params, features, target):
        return losses.cross_entropy(features, target), features

    halves = types.SimpleNamespace(
        images=images, target=labels, labels=labels, stats={}, mask=None,
        passes=Passing("independent", room=lambda rows: lambda classes: (rows,)).over(8),
        features=lambda params, stats, images: (images @ params, None),
        losses_for=lambda target: classify,
    )  # fmt: skip
    method = methods.Tabled(rules.sgd(5))
    found = jax.jit(lambda kernel: method.gradient(halves, kernel, {}, 0, None))(kernel)
    np.testing.assert_allclose(found.logits, images @ kernel, rtol=1e-5)
    assert found.stats is None


def test_stages_of_stages_are_in_order_and_none_is_empty():
    """What a first stage would do after the switch is never done; at one step the last holds."""
    a, b, c, d = (rules.sam(5, rho=rho) for rho in (0.1, 0.2, 0.3, 0.4))
    at = rules.stagewise
    assert methods.rule_stages(a) == [(0, a)]
    assert methods.rule_stages(at(a, b, switch_step=7)) == [(0, a), (7, b)]
    nested = at(at(a, b, switch_step=3), at(c, d, switch_step=9), switch_step=7)
    assert methods.rule_stages(nested) == [(0, a), (3, b), (7, c), (9, d)]
    late = at(at(a, b, switch_step=7), c, switch_step=7)
    assert methods.rule_stages(late) == [(0, a), (7, c)]
    past = at(a, at(b, at(c, d, switch_step=5), switch_step=4), switch_step=7)
    assert methods.rule_stages(past) == [(0, a), (7, d)]
    stages = methods.Tabled(nested, Ascent(p=3.0), "every").stages()
    assert [(start, of.rule, of.ascent, of.hands_on) for start, of in stages] == [
        (start, rule, Ascent(p=3.0), True) for start, rule in methods.rule_stages(nested)
    ]


def test_frozen_statistics_normalise_by_the_running_ones_and_stay(one_step):
    state, images, labels, run = one_step
    stats = jax.tree.map(lambda x: x + 0.5, state.batch_stats)
    state = state.replace(batch_stats=stats)
    after, seen = run(
        rules.sgd(5), Objective(losses.cross_entropy, 5, train_statistics=False), state
    )
    variables = {"params": state.params, "batch_stats": stats}
    logits = jax.jit(lambda v: state.apply_fn(v, images, train=False))(variables)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(seen.loss, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, stats)


def test_a_frozen_part_stays_and_the_adversary_is_the_librarys(one_step):
    state, images, labels, run = one_step
    whole = state.params
    head, rest = split(whole, "head")
    assert set(head) == {"head"} and "head" not in rest
    jax.tree.map(np.testing.assert_array_equal, merge(head, rest), whole)
    with pytest.raises(ValueError, match="no scales to train"):
        split(whole, "scales")
    tx = optax.sgd(0.1)
    part = state.replace(params=head, frozen=rest, tx=tx, opt_state=tx.init(head))

    def wrap(fn):
        return losses.feature_adversary(fn, COUNTS, variant="release")

    adversary = Adversary(wrap, lambda step: 0.25 + step)
    after, _ = run(rules.sgd(5), Objective(losses.cross_entropy, 5, adversary=adversary), part)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, rest)

    embed = functools.partial(state.apply_fn, train=True, mutable=["batch_stats"], method="embed")
    features, _ = jax.jit(embed)(part.variables(), images)

    def mean_loss(head):
        def plain(head, features):
            logits = state.apply_fn({"params": {**rest, **head}}, features, method="classify")
            return losses.cross_entropy(logits, labels), None

        return wrap(plain)(head, labels, features, share=0.25)[0].mean()

    assert_close(moved_by(part, after), jax.jit(jax.grad(mean_loss))(head))
