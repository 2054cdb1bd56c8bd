"""Methods, losses and presets by name, and one step under each against the library itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import cifar_lt
from experiments.command import loss_flags, method_flags, presets, stage2
from experiments.data import augment
from experiments.host.errors import RunError
from experiments.run.settings import Settings
from experiments.step import methods
from experiments.step.objectives import Adversary, Objective
from experiments.step.optimizer import optimizer
from experiments.step.state import create_state, merge, split
from experiments.step.step import Inputs, make_step
from imbsam_jax import Ascent, cc_sam, losses, rules, value_and_grad
from tiny import COUNTS, TinyNet, tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax's bias and batch normalisation

OPTIONS = vars(cifar_lt.arguments().parse_args(["--eta", "10", "--epochs", "10"]))


def build(name, **options):
    return method_flags.build_method(
        name, np.array(COUNTS), {**OPTIONS, **options}, steps_per_epoch=5
    )


# ---- by name -------------------------------------------------------------------------------


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
    for fraction, epochs, switch in ((0.7, 10, 35), (0.7, 200, 700), (0.65, 10, 35), (0.0, 10, 0)):
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
        # 5, 160 and 180 of 200 epochs.
        ({"rho_schedule": "step", "epochs": 40}, {4: 0.05, 5: 0.1, 159: 0.1, 160: 0.5, 180: 0.6}),
    ],
)  # fmt: skip
def test_radius_schedules_by_epoch(options, at):
    method, found = build("sam", **options)
    radii = {step: method.rule(step).radii[0] for step in at}
    assert radii == pytest.approx(at)
    if options["rho_schedule"] != "constant":
        assert found["rule_args"]["rho"].startswith(options["rho_schedule"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgdd", {}, "unknown rule 'sgdd'"),
        ("sse_sam", {"switch_fraction": 1.5}, "--switch-fraction must be between 0 and 1"),
        ("sse_sam", {"rho_schedule": "linear"}, "sse_sam has no --rho that --rho-schedule could"),
        ("sam", {"rho_values": [0.1]}, "--rho-values belong to a --rho-schedule"),
        ("sam", {"rho_schedule": "late", "rho_values": [0.1]}, "takes two --rho-values, got 1"),
        ("sam", {"rho_schedule": "linear", "rho_values": [0.1, -1]}, "radius must be finite"),
        ("cc_sam", {"p_norm": 3.0}, "cc_sam has a perturbation of its own, without --p-norm"),
        ("cc_sam", {"flat_ratio": 2.0}, "flat_ratio must be between 0 and 1"),
        ("focal_sam", {"gamma": -1.0}, "gamma must be finite and at least 0"),
        ("reweighted_sam", {"tail_weight": 0.0}, "tail_weight must be finite and positive"),
    ],
)
def test_bad_methods_are_refused(name, options, message):
    with pytest.raises(RunError, match=message):
        build(name, **options)


LOGITS = jnp.array([[1.0, 0.0, -1.0, 0.5, 0.2], [0.3, 0.1, 0.0, -0.4, 2.0]])
LABELS = jnp.array([4, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", losses.cross_entropy),
        ("class_balanced", losses.class_balanced(COUNTS, 0.99, normalise="weights")),
        ("focal", losses.focal(2.0)),
        ("ldam", losses.ldam(COUNTS, max_margin=0.3, scale=10.0)),
        ("logit_adjusted", losses.logit_adjusted(COUNTS, tau=0.5)),
        ("vs", losses.vs(COUNTS, gamma=0.05, tau=0.5)),
        ("softmax_binary", losses.softmax_binary(COUNTS, beta=0.99)),
    ],
)
def test_losses_by_name(name, expected):
    options = {
        **OPTIONS, "beta": 0.99, "focal_gamma": 2.0, "max_margin": 0.3, "scale": 10.0, "tau": 0.5,
        "vs_gamma": 0.05,
    }  # fmt: skip
    loss, found = loss_flags.build_loss(name, np.array(COUNTS), options, steps_per_epoch=5)
    assert found["loss"] == name
    np.testing.assert_array_equal(loss(LOGITS, LABELS, 0), expected(LOGITS, LABELS))


def test_every_loss_has_a_row_above():
    (mark,) = test_losses_by_name.pytestmark
    assert {name for name, _ in mark.args[1]} == set(loss_flags.LOSSES)


def test_deferred_reweighting_smoothing_and_the_head_of_ldam():
    options = {**OPTIONS, "drw_epoch": 2, "smoothing": 0.1, "beta": 0.99}
    loss, found = loss_flags.build_loss("ldam", np.array(COUNTS), options, steps_per_epoch=5)
    plain = losses.ldam(COUNTS)
    weights = losses.class_balanced_weights(COUNTS, 0.99)
    later = losses.weighted(plain, weights, normalise="weights")
    for step, part in ((9, plain), (10, later)):
        expected = losses.smoothed(part, 0.1)(LOGITS, LABELS)
        np.testing.assert_allclose(loss(LOGITS, LABELS, step), expected, rtol=1e-6)
    assert found["loss_args"]["drw_epoch"] == 2 and found["loss_args"]["smoothing"] == 0.1
    assert loss_flags.classifier_for("ldam", OPTIONS) == "normalised"
    assert loss_flags.classifier_for("ldam", {**OPTIONS, "scale_logits": False}) == "linear"
    assert loss_flags.classifier_for("vs", OPTIONS) == "linear"
    for name in ("class_balanced", "softmax_binary"):
        with pytest.raises(RunError, match="weighted from the start"):
            loss_flags.build_loss(name, np.array(COUNTS), options, steps_per_epoch=5)
    with pytest.raises(RunError, match="--drw-epoch 10 is past the last of 10 epochs"):
        late = {**options, "drw_epoch": 10}
        loss_flags.build_loss("ldam", np.array(COUNTS), late, steps_per_epoch=5)
    with pytest.raises(RunError, match="unknown loss 'mse'"):
        loss_flags.build_loss("mse", np.array(COUNTS), OPTIONS, steps_per_epoch=5)


# ---- presets -------------------------------------------------------------------------------


# METHODS 1.4 to 1.7, 3.2, 3.3, 3.6, written down apart from presets.py.
PUBLISHED = {
    "imbsam-paper": "resnet34_3x3 64 0.01 5e-3 cosine-prestep imbsam rho=0.05 eta=100 tail_scale=1",
    "imbsam-release": "resnet34_3x3 64 0.01 1e-3 cosine-prestep imbsam rho=0.05 eta=20 "
    "tail_scale=2",
    "focal-sam-paper": "resnet32 64 0.1 1e-3 cosine focal_sam rho=0.3 gamma=3.2 strength=0.8 tau=1",
    "focal-sam-paper-cifar10": "resnet32 64 0.1 2e-4 cosine focal_sam rho=0.2 gamma=3 strength=0.5",
    "sse-sam-paper": "resnet34_3x3 64 0.01 1e-3 cosine-prestep sse_sam head_rho=0.05 tail_rho=0.1 "
    "switch_fraction=0.7 eta=100",
    "cc-sam-paper": "resnet32 64 0.1 2e-4 warmup-steps cc_sam noise_ratio=1 stage2_epochs=30",
    "cc-sam-release": "resnet32 64 0.1 2e-4 warmup-steps cc_sam noise_ratio=1e-6 flat_ratio=0.5 "
    "mixup=1 imbalance_factor=200 stage2_epochs=30 stage2_lr=0.01 stage2_limit=0.3",
    "saddle": "resnet32 128 0.1 2e-4 steps sam rho=0.8 drw_epoch=160 beta=0.9999",
    "saddle-ldam": "resnet32 128 0.1 2e-4 steps sam rho=0.8 drw_epoch=160 max_margin=0.5 scale=30",
    "ldam-drw": "resnet32 128 0.1 2e-4 steps sgd drw_epoch=160 max_margin=0.5 scale=30",
    "weight-balancing": "resnet34_3x3 64 0.01 5e-3 cosine-prestep sgd",
    "density-ratio-protocol": "resnet32 128 0.1 2e-4 cosine imbsam",
}


def test_presets_have_the_published_numbers():
    assert set(PUBLISHED) == set(presets.PRESETS)
    for name, line in PUBLISHED.items():
        args = presets.parse(cifar_lt.arguments(), ["--preset", name])
        model, batch, lr, decay, schedule, rule, *more = line.split()
        assert (args.model, args.schedule, args.rule) == (model, schedule, rule), name
        numbers = {"batch_size": batch, "lr": lr, "weight_decay": decay, "epochs": "200"}
        for key, value in (numbers | dict(pair.split("=") for pair in more)).items():
            assert getattr(args, key) == pytest.approx(float(value)), (name, key)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_build_and_take_a_step(bench, name):
    parser = cifar_lt.arguments()
    preset = presets.PRESETS[name]
    assert set(preset.flags) <= {action.dest for action in parser._actions}
    args = presets.parse(parser, ["--preset", name])
    options = {**vars(args), "eta": 10.0}
    method, _ = method_flags.build_method(args.rule, np.array(COUNTS), options, steps_per_epoch=5)
    loss, _ = loss_flags.build_loss(args.loss, np.array(COUNTS), options, steps_per_epoch=5)
    state, *_, run = bench
    for _, stage in method.stages():
        objective = Objective(loss, 5, args.mixup)
        after, seen = jax.eval_shape(lambda s, m=stage, o=objective: run(m, o, s), state)
        assert seen.loss.shape == ()
        shapes = [leaf.shape for leaf in jax.tree.leaves(after.batch_stats)]
        assert shapes == [leaf.shape for leaf in jax.tree.leaves(state.batch_stats)]
    for stage_name in args.stage2:
        made = stage2.make(
            stage_name, options, class_counts=np.array(COUNTS), first=Settings(),
            steps_per_epoch=5,
        )  # fmt: skip
        assert made.settings.epochs == {"cc-sam": 30, "weight-balancing": 10}[stage_name]
    said = presets.explain(args)
    assert said.startswith(f"preset {name}: ")
    assert said.count("not published") == len(preset.unpublished)
    for key in preset.flags:
        assert f"--{key.replace('_', '-')}" in said.replace("--no-", "--")


def test_a_flag_beside_a_preset_wins_and_is_shown():
    flags = ["--lr", "0.5", "--preset", "imbsam-release", "--eta=7", "--no-strict"]
    args = presets.parse(cifar_lt.arguments(), flags)
    assert (args.lr, args.eta, args.tail_scale, args.strict) == (0.5, 7.0, 2.0, False)
    said = presets.explain(args)
    assert "--lr 0.5  (preset: 0.01)" in said and "--tail-scale 2.0\n" in said
    assert "--no-strict  (preset: True)" in said


# ---- one step ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    """A step of a net with batch normalisation, from one state and batch."""
    dataset = tiny_dataset()
    model, tx = TinyNet(5), optimizer(lambda _: 0.1, 0.0, 0.0)
    state = jax.jit(lambda key: create_state(model, tx, jnp.zeros((1, 8, 8, 3)), key))(
        jax.random.key(0)
    )
    inputs = Inputs(*map(jnp.asarray, (dataset.train_images, dataset.train_labels)))
    index = jnp.arange(0, 78, 5)

    def prepare(images, positions, batch_size, key):
        # Depends on the position, as augmentation does.
        images = augment.normalise(images, dataset.mean, dataset.std)
        return images + 0.1 * positions[:, None, None, None]

    def run(method, objective, state=state):
        step = make_step(method, objective, prepare)
        call = jax.jit(step, static_argnums=4)
        return call(state, inputs, index, jnp.arange(len(index)), len(index), jax.random.key(1))

    images = prepare(inputs.images[index], jnp.arange(len(index)), len(index), None)
    return state, images, inputs.labels[index], run


def moved_by(state, after):
    """The gradient of a step with learning rate 0.1, no momentum and no decay."""
    return jax.tree.map(lambda old, new: (old - new) / 0.1, state.params, after.params)


def assert_close(found, expected, tolerance=2e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def logits_of(state, params, images):
    variables = {"params": params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images, train=True, mutable=["batch_stats"])


def test_a_rule_in_two_halves_is_the_rule(bench):
    state, images, labels, run = bench
    rule = rules.imbsam(COUNTS, rho=0.5, eta=10)

    def losses_fn(params):
        logits, _ = logits_of(state, params, images)
        return losses.cross_entropy(logits, labels), None

    _, expected = value_and_grad(losses_fn, rule, ascent=Ascent(p=3.0))(state.params, labels)
    method = methods.Tabled(rule, Ascent(p=3.0))
    after, _ = run(method, Objective(losses.cross_entropy, 5))
    assert_close(moved_by(state, after), expected)


def test_running_statistics_of_every_pass(bench):
    """Updated at theta, then at theta + e; loss and accuracy stay those at theta."""
    state, images, labels, run = bench
    rule = rules.sam(5, rho=0.5)
    objective = Objective(losses.cross_entropy, 5)
    first, seen = run(rule, objective)
    after, again = run(methods.Tabled(rule, statistics="every"), objective)
    jax.tree.map(np.testing.assert_array_equal, after.params, first.params)
    assert (seen.loss, seen.accuracy) == (again.loss, again.accuracy)

    gradient = jax.grad(
        lambda p: losses.cross_entropy(logits_of(state, p, images)[0], labels).mean()
    )(state.params)
    length = optax.tree.norm(gradient)
    there = jax.tree.map(lambda p, g: p + 0.5 * g / length, state.params, gradient)
    second = state.replace(batch_stats=first.batch_stats)
    _, updated = logits_of(second, there, images)
    assert_close(after.batch_stats, updated["batch_stats"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_mixup_and_class_conditional_sam(bench, variant):
    """Mixed images and labels by hand; the release perturbs for the first labels alone."""
    state, images, labels, run = bench
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


def test_frozen_statistics_normalise_by_the_running_ones_and_stay(bench):
    state, images, labels, run = bench
    stats = jax.tree.map(lambda x: x + 0.5, state.batch_stats)
    state = state.replace(batch_stats=stats)
    after, seen = run(
        rules.sgd(5), Objective(losses.cross_entropy, 5, train_statistics=False), state
    )
    variables = {"params": state.params, "batch_stats": stats}
    logits = state.apply_fn(variables, images, train=False)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(seen.loss, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, stats)


def test_a_frozen_part_stays_and_the_adversary_is_the_librarys(bench):
    state, images, labels, run = bench
    whole = state.params
    head, rest = split(whole, "head")
    assert set(head) == {"head"} and "head" not in rest
    jax.tree.map(np.testing.assert_array_equal, merge(head, rest), whole)
    with pytest.raises(ValueError, match="no scales to train"):
        split(whole, "scales")
    tx = optax.sgd(0.1)
    part = state.replace(params=head, frozen=rest, tx=tx, opt_state=tx.init(head))

    def wrap(fn):
        return cc_sam.feature_adversary(fn, COUNTS, variant="release")

    adversary = Adversary(wrap, lambda step: 0.25 + step)
    after, _ = run(rules.sgd(5), Objective(losses.cross_entropy, 5, adversary=adversary), part)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, rest)

    features, _ = state.apply_fn(
        part.variables(), images, train=True, mutable=["batch_stats"], method="embed"
    )

    def mean_loss(head):
        def plain(head, features):
            logits = state.apply_fn({"params": {**rest, **head}}, features, method="classify")
            return losses.cross_entropy(logits, labels), None

        return wrap(plain)(head, labels, features, share=0.25)[0].mean()

    assert_close(moved_by(part, after), jax.grad(mean_loss)(head))
