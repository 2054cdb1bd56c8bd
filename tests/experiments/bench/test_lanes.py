"""Lanes against a loop written out for each, and against each other; settings chosen by folds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from threadpoolctl import threadpool_info, threadpool_limits

from experiments.bench import references, snippet
from experiments.bench.choosing import criterion, folds
from experiments.bench.comparison import Engine, Part, Recipe
from experiments.bench.lanes import Net, _loss, in_blocks, order_of
from experiments.bench.references import REFERENCES, probabilities
from experiments.command.candidates import RULES, Candidate, candidates

DRAW = np.random.default_rng(0)
# 60 rows of three classes, 36, 18 and 6; the first 40 are trained on.
LABELS = np.tile(np.repeat([0, 1, 2], [6, 3, 1]), 6).astype(np.int32)
FEATURES = (DRAW.normal(size=(60, 4)) + LABELS[:, None]).astype(np.float32)
TRAIN, TEST = np.arange(40), np.arange(40, 60)
PART = Part(3, FEATURES, TRAIN, TEST)
RECIPE = Recipe(Net(5, 1, 3), steps=6, batch_size=16, folds=2, seed=7)
POINT = {
    "lr": 0.1, "weight_decay": 0.01, "rho": 0.3, "head_share": 0.8, "strength": 0.7, "gamma": 2.0,
    "gsa_scale": 0.05, "tau": 1.2, "beta": 0.9, "focal_gamma": 1.5, "tail_weight": 3.0,
}  # fmt: skip
OTHER = {name: value / 2 for name, value in POINT.items()} | {"head_share": 0.6}


def row(rule: str, loss: str, *points: dict[str, float], sampling: str = "shuffled") -> Candidate:
    return Candidate(f"{rule}, {loss}, {sampling}", rule, loss, sampling, list(points or [POINT]))


ROWS = [
    *(row(rule, "logit_adjusted", POINT, OTHER) for rule in RULES),
    row("sgd", "cross_entropy", POINT, OTHER), row("sgd", "class_balanced", POINT, OTHER),
    row("sgd", "focal", POINT, OTHER),
    row("sgd", "cross_entropy", POINT, OTHER, sampling="balanced"),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    with jax.numpy_rank_promotion("raise"):
        return Engine(LABELS, LABELS, RECIPE, ROWS)


def logits(engine: Engine, one: Candidate, points: list[Any], held: Any = TEST) -> Any:
    """What the lanes of these points say of rows, trained on all of TRAIN."""
    order = engine._order(TRAIN, one.sampling, engine._draw(PART, 0))
    lanes = [engine.lane(one, point, PART) for point in points]
    return engine._call(PART, one, lanes, max(len(points), 2), order, held)[0]


# ---- a loop over batches, from the definitions ------------------------------------------------


def forward(params: Any, x: Any) -> Any:
    hidden = jnp.maximum(x @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"], 0)
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


COUNTS = np.bincount(LABELS[TRAIN])
EFFECTIVE = 0.1 / (1 - 0.9**COUNTS)


@functools.cache
def begun() -> Any:
    """The network of PART that nothing was trained of yet."""
    key = jax.random.fold_in(jax.random.key(7), 3)
    init = jax.jit(functools.partial(RECIPE.net.module().init, train=False))
    return jax.device_get(init(key, FEATURES[:1])["params"])


def losses_of(loss: str, z: Any, y: Any) -> Any:
    """Of each row, with the numbers of POINT."""
    if loss == "logit_adjusted":
        z = z + 1.2 * jnp.log(COUNTS / COUNTS.sum())
    plain = jax.nn.logsumexp(z, -1) - z[jnp.arange(len(y)), y]
    if loss == "class_balanced":  # of mean 1 over the rows
        return plain * jnp.asarray(EFFECTIVE * COUNTS.sum() / (COUNTS * EFFECTIVE).sum())[y]
    return (1 - jnp.exp(-plain)) ** 1.5 * plain if loss == "focal" else plain


def gradient(one: Candidate, params: Any, x: Any, y: Any) -> Any:
    rule, loss = one.rule, one.loss

    def part(weights: Any) -> Any:
        w = jnp.asarray(weights, jnp.float32)[y]
        return jax.grad(lambda p: (w * losses_of(loss, forward(p, x), y)).mean())

    def moved(weights: Any) -> Any:
        d = part(weights)(params)
        still = {"without-last-bias": ["head"], "last-bias": ["hidden_0"]}.get(one.perturb, [])
        for layer in still:
            d[layer]["bias"] = jnp.zeros_like(d[layer]["bias"])
        if one.perturb == "last-bias":
            for layer in d:
                d[layer]["kernel"] = jnp.zeros_like(d[layer]["kernel"])
        length = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(d)))
        e = jax.tree.map(lambda leaf: 0.3 * leaf / jnp.where(length == 0, 1, length), d)
        return part(weights)(jax.tree.map(jnp.add, params, e))

    if rule == "sgd":
        return part(np.ones(3))(params)
    if rule == "sam":
        return moved(np.ones(3))
    if rule == "reweighted_sam":  # its tail the third class, by the head's share below
        return moved(np.array([1.0, 1.0, 3.0]))
    if rule == "gsa":
        return grouped(part, params)
    # 24, 12 and 4 rows: two classes hold 80%, the third is the tail.
    share = {"imbsam": np.array([0, 0, 1]), "focal_sam": 0.7 * (1 - COUNTS / 40) ** 2}[rule]
    return jax.tree.map(jnp.add, part(1 - share)(params), moved(share))


def grouped(part: Any, params: Any) -> Any:
    """GSA, each class a group: along what its gradient has beside the sum of all, by its bound."""
    theta, shaped = ravel_pytree(params)

    of = jax.vmap(lambda c, at: ravel_pytree(part(c)(shaped(at)))[0])
    classes = jnp.eye(3)
    each = of(classes, jnp.stack([theta] * 3))
    total = each[0] + each[1] + each[2]

    def point(h: Any, count: Any) -> Any:
        h -= (h @ total) / (total @ total) * total
        length = jnp.sqrt(h @ h)
        radius = jnp.sqrt(jnp.sqrt(theta @ theta) / (2 * jnp.where(length == 0, 1, length)))
        radius *= 0.05 * (theta.size / (count - 1)) ** 0.25
        return theta + radius * h / jnp.where(length == 0, 1, length)

    return shaped(of(classes, jax.vmap(point)(each, COUNTS)).sum(axis=0))


MOVED = [
    row(rule, "logit_adjusted", POINT, OTHER)._replace(name=f"{rule}, {which}", perturb=which)
    for rule, which in (("imbsam", "without-last-bias"), ("sam", "last-bias"))
]


@pytest.mark.allow_rank_promotion
@pytest.mark.parametrize("one", [*ROWS, *MOVED], ids=lambda r: r.name)
def test_a_lane_is_a_loop_over_batches(engine: Engine, one: Candidate) -> None:
    """Momentum, weight decay at theta and the cosine, beside each rule and loss."""
    mine = engine if one in ROWS else Engine(LABELS, LABELS, RECIPE, [one])
    found = logits(mine, one, [OTHER, POINT])[1]
    params = start = begun()
    speed = jax.tree.map(np.zeros_like, params)
    of = jax.jit(lambda params, x, y: gradient(one, params, x, y))
    order = engine._order(TRAIN, one.sampling, engine._draw(PART, 0))
    assert order.shape == (6, 16)
    for step, rows in enumerate(order):
        lr = 0.05 * (1 + np.cos(np.pi * step / 6))
        grads = jax.device_get(of(params, FEATURES[rows], LABELS[rows]))
        speed = jax.tree.map(lambda v, g, p: 0.9 * v + g + 0.01 * p, speed, grads, params)
        params = jax.tree.map(lambda p, v, lr=lr: p - lr * v, params, speed)
    said = jax.jit(forward)(params, FEATURES[TEST])
    np.testing.assert_allclose(found, said, rtol=2e-4, atol=2e-5)
    if one in MOVED:
        # The snippet says the same in its own way; what moves is no matter of indifference.
        text = snippet.program(
            one, one.described(COUNTS, POINT), RECIPE, source="", read="", groups=None
        )
        names: dict[str, Any] = {"__name__": "snippet"}
        exec(text, names)
        assert names["SEED"] == RECIPE.seed and "columns.fit(table, rows, seed=SEED)" in text
        layers = [dict(start[layer]) for layer in ("hidden_0", "head")]
        x, y = FEATURES[TRAIN], LABELS[TRAIN]
        layers = names["train"](x, y, y, layers, order)
        said = names["logits_of"](layers, FEATURES[TEST])
        np.testing.assert_allclose(found, said, rtol=2e-4, atol=2e-5)
        whole = logits(engine, one._replace(perturb="all"), [OTHER, POINT])[1]
        assert np.abs(found - whole).max() > 1e-3


def test_a_program_is_compiled_for_each_structure_alone(engine: Engine) -> None:
    """SGD under four losses and two orders; SAM; ImbSAM beside Focal-SAM; GSA."""
    for one in ROWS:
        logits(engine, one, [POINT, OTHER])
    assert len(engine.compiled) == len(engine.programs(PART)) == 4


@pytest.mark.parametrize("one", ROWS, ids=lambda r: r.name)
def test_a_lane_alone_is_the_same_as_among_others(engine: Engine, one: Candidate) -> None:
    together = logits(engine, one, [POINT, OTHER])
    alone = logits(engine, one, [POINT])
    np.testing.assert_array_equal(alone[0], together[0])
    swapped = logits(engine, one, [OTHER, POINT])
    np.testing.assert_allclose(swapped[::-1], together, rtol=1e-5, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3, "the lanes cannot be told apart"


@pytest.mark.parametrize("one", ROWS, ids=lambda r: r.name)
def test_the_second_point_is_sgd_with_cross_entropy(engine: Engine, one: Candidate) -> None:
    """What a row adds to SGD is taken away: so SGD is among the candidates of every row."""
    made = {r.name: r for r in candidates(
        RULES, ("cross_entropy", "logit_adjusted", "class_balanced", "focal"), settings=3, fixed={},
        samplings=("shuffled", "balanced"),
    )}  # fmt: skip
    name = f"{one.rule}, {one.loss}" + ", balanced sampling" * (one.sampling == "balanced")
    second = made[name].points[1]
    plain = row("sgd", "cross_entropy", sampling=one.sampling)
    want = logits(engine, plain, [made["sgd, cross_entropy"].points[1]])
    np.testing.assert_allclose(logits(engine, one, [second]), want, rtol=1e-4, atol=1e-5)


def test_every_row_has_equally_many_settings_and_the_same_learning_rates() -> None:
    made = candidates(RULES, ("cross_entropy", "logit_adjusted"), settings=5, fixed={"rho": 0.07})
    assert len(made) == 12
    for one in made:
        assert [p["lr"] for p in one.points] == [p["lr"] for p in made[0].points]
        assert len({tuple(p.values()) for p in one.points}) == 5
        assert {p.get("rho", 0.07) for p in one.points} == {0.07}, "a setting that is given"


def test_the_first_point_has_the_published_settings_and_the_second_those_of_sgd() -> None:
    """What nothing hangs on there is drawn: a second point has more."""
    made = {one.name: one.points for one in candidates(
        RULES, ("cross_entropy", "logit_adjusted", "class_balanced", "focal"), settings=2, fixed={}
    )}  # fmt: skip
    plain, other = {"lr": 0.1, "weight_decay": 1e-3}, {"lr": 0.05, "weight_decay": 5e-3}
    for name, first, second in [
        ("sgd, cross_entropy", {}, {}), ("sgd, logit_adjusted", {"tau": 1.0}, {"tau": 0.0}),
        ("sgd, class_balanced", {"beta": 0.999}, {"beta": 0.0}),
        ("sgd, focal", {"focal_gamma": 1.0}, {"focal_gamma": 0.0}),
        ("sam, cross_entropy", {"rho": 0.1}, {"rho": 0.0}),
        ("imbsam, logit_adjusted", {"rho": 0.1, "head_share": 0.8, "tau": 1.0},
         {"rho": 0.0, "tau": 0.0}),
        ("focal_sam, cross_entropy", {"rho": 0.1, "strength": 0.8, "gamma": 3.0},
         {"rho": 0.0}),
        ("reweighted_sam, cross_entropy", {"rho": 0.1, "head_share": 0.8, "tail_weight": 2.0},
         {"rho": 0.0, "tail_weight": 1.0}),
        ("gsa, cross_entropy", {"gsa_scale": 0.01}, {"gsa_scale": 0.0}),
    ]:  # fmt: skip
        assert made[name][0] == plain | first, name
        assert made[name][1].items() >= (other | second).items(), name


def test_points_fill_the_range_of_each_setting() -> None:
    """Of a hundred one lies in each hundredth: of the range, or of its logarithm's."""
    made = candidates(
        RULES, ("cross_entropy", "logit_adjusted", "class_balanced", "focal"), settings=101,
        fixed={},
    )  # fmt: skip
    found: dict[str, set[float]] = {}
    for one in made:
        for point in one.points[2:]:  # behind the defaults, and those of SGD
            for name, value in point.items():
                found.setdefault(name, set()).add(value)
    for name, (low, high, log) in {
        "lr": (0.01, 0.2, True), "weight_decay": (1e-5, 0.03, True), "rho": (0.02, 0.5, True),
        "gsa_scale": (1e-3, 0.1, True), "head_share": (0.5, 0.95, False),
        "strength": (0.5, 1, False), "gamma": (1, 4, False), "tail_weight": (1, 10, True),
        "tau": (0.5, 1.5, False), "beta": (0.9, 0.9999, False), "focal_gamma": (0.5, 3, False),
    }.items():  # fmt: skip
        drawn, scale = found.pop(name), np.log if log else np.asarray
        ends, wanted = scale([min(drawn), max(drawn)]), scale([low, high])
        np.testing.assert_allclose(ends, wanted, atol=0.025 * np.ptp(wanted), err_msg=name)
    assert not found, "a setting without a range here"


# ---- rows and folds ---------------------------------------------------------------------------


def test_batches_are_one_permutation_after_another() -> None:
    rows = np.arange(10, 33)
    order = order_of(rows, 9, 8, np.random.default_rng(1)).ravel()
    assert order.dtype == np.int32 and len(order) == 72
    for start in (0, 23, 46):
        np.testing.assert_array_equal(np.sort(order[start : start + 23]), rows)
    assert len({tuple(order[start : start + 23]) for start in (0, 23, 46)}) == 3
    assert order_of(rows, 2, 64, np.random.default_rng(1)).shape == (2, 23)
    assert order_of(rows, 0, 8, np.random.default_rng(1)).shape == (0, 8)
    balanced = order_of(TRAIN, 6, 16, np.random.default_rng(1), LABELS[TRAIN]).ravel()
    np.testing.assert_array_equal(np.bincount(LABELS[balanced]), [32, 32, 32])
    rare = balanced[LABELS[balanced] == 2]
    np.testing.assert_array_equal(np.sort(rare), np.repeat(TRAIN[LABELS[TRAIN] == 2], 8))


def test_rows_that_pad_a_block_change_no_prediction(engine: Engine) -> None:
    want = logits(engine, ROWS[1], [POINT])
    np.testing.assert_array_equal(logits(engine, ROWS[1], [POINT], TEST[:7]), want[:, :7])
    assert in_blocks(TEST[:7]).shape == in_blocks(TEST, 512).shape == (512,)
    assert in_blocks(TEST, 513).shape == (1024,)


@pytest.mark.parametrize("count", [2, 3])
def test_every_row_is_held_once_and_every_class_in_every_rest(count: int) -> None:
    labels = np.repeat([0, 1, 2, 3], [20, 7, 2, 1])
    rows = np.arange(30)[::-1].copy()
    held = folds(np.sort(rows), labels, count, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(29))  # not the single
    for fold in held:
        assert set(np.setdiff1d(labels, labels[np.setdiff1d(rows, fold)])) == set()
    sizes = [np.bincount(labels[fold], minlength=4) for fold in held]
    assert np.ptp(sizes, axis=0).max() <= 1


def test_rows_of_one_id_are_held_together() -> None:
    ids = np.arange(60) // 4
    held = folds(TRAIN, LABELS, 2, np.random.default_rng(0), ids)
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), TRAIN)
    assert not set(ids[held[0]]) & set(ids[held[1]])
    # By the rarest class among the rows of an id: two of four, one of two and two of four.
    kinds = [{2, 4, 7, 9}, {1, 6}, {0, 3, 5, 8}]
    for seed in range(5):
        for fold in folds(TRAIN, LABELS, 2, np.random.default_rng(seed), ids):
            assert [len(kind & set(ids[fold].tolist())) for kind in kinds] == [2, 1, 2]
    (one,) = folds(TRAIN, LABELS, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(LABELS[one]), [5, 2, 1])  # a fifth of 24, 12 and 4


def test_what_is_not_finite_is_never_chosen() -> None:
    good = np.array([[0.6, 0.4], [0.7, 0.3]])
    assert criterion(good, np.array([0, 1])) == (50.0, pytest.approx((np.log(0.6 * 0.3)) / 2))
    assert criterion(np.full((2, 2), np.nan), np.array([0, 1])) < criterion(good, np.array([1, 1]))


def test_choosing_never_reads_a_test_row() -> None:
    """Other features, labels and groups of the test rows: the same settings, the same network."""
    draw = np.random.default_rng(5)
    labels, features = LABELS.copy(), FEATURES.copy()
    labels[TEST] = draw.permutation(labels[TEST])
    features[TEST] = draw.normal(size=(20, 4))
    assert (labels != LABELS).any()
    points = [{**POINT, "lr": lr} for lr in (0.001, 0.05, 0.2)]
    row_ = row("imbsam", "logit_adjusted", *points)
    found: list[Any] = []
    compiled: dict[Any, Any] = {}  # a program knows no row, as folds show that share it
    for y, x in ((LABELS, FEATURES), (labels, features)):
        engine = Engine(y, y, RECIPE, [row_], keep=True)
        engine.compiled = compiled
        found += engine.run(PART._replace(features=x), [row_])
    first, second = found
    assert first.chosen == second.chosen and first.validated == second.validated
    assert len(set(first.validated)) > 1, "all settings are alike"
    assert first.validated[points.index(first.chosen)] == max(first.validated)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    # Beside them, another training label is noticed.
    labels[0] = 2
    engine = Engine(labels, labels, RECIPE, [row_], keep=True)
    engine.compiled = compiled
    assert engine.run(PART, [row_])[0].validated != first.validated


def test_a_rule_weighs_by_group_and_the_loss_by_label() -> None:
    """Cells of label and group: the table is of groups, offsets of labels."""
    groups = np.tile([0, 0, 0, 1], 15).astype(np.int32)
    one = row("imbsam", "logit_adjusted")
    engine = Engine(LABELS, groups, RECIPE, [one])
    np.testing.assert_array_equal(engine.cells, LABELS * 2 + groups)
    assert (engine.label_of, engine.group_of) == ((0, 0, 1, 1, 2, 2), (0, 1) * 3)
    lane = engine.lane(one, POINT, PART)
    assert lane.table.base.tolist() == [1, 0] * 3 and lane.table.groups.tolist() == [[0, 1] * 3]
    np.testing.assert_allclose(lane.offsets, 1.2 * np.log(COUNTS / 40))
    # Of 40 rows 30 and 10; weights are of mean 1 over the rows, each with its group's.
    balanced = engine.lane(row("sgd", "class_balanced"), POINT, PART)
    effective = 0.1 / (1 - 0.9 ** np.array([30, 10]))
    weights = effective * 40 / (np.array([30, 10]) * effective).sum()
    np.testing.assert_allclose(balanced.weights, np.tile(weights, 3))
    z, cells = np.float32(np.random.default_rng(1).normal(size=(6, 3))), np.arange(6)
    structure = engine._structure(one, PART)
    loss_of = jax.jit(lambda lane: _loss(structure, lane, engine.label_of)(z, cells))
    found, plain = loss_of(balanced), np.log(np.exp(z).sum(1)) - z[cells, engine.label_of]
    np.testing.assert_allclose(found, np.tile(weights, 3) * plain, rtol=1e-5)
    # Groups that are the labels are no groups.
    same = Engine(LABELS, LABELS.copy(), RECIPE, [one])
    by_label = Engine(LABELS, LABELS, RECIPE, [one])
    assert same.label_of == same.group_of == by_label.label_of == (0, 1, 2)
    same.compiled = by_label.compiled
    np.testing.assert_array_equal(
        same.run(PART, [one])[0].probabilities, by_label.run(PART, [one])[0].probabilities
    )


def test_the_models_are_those_of_the_docstring() -> None:
    """100 rounds up to three classes, then 300 trees in all, and never fewer than 10 rounds."""
    for classes, rounds in ((2, 100), (3, 100), (4, 75), (21, 14), (30, 10), (100, 10)):
        for name, weight in (("trees", None), ("balanced_trees", "balanced")):
            made = REFERENCES[name][1](classes, 7)
            found = (made.max_iter, made.random_state, made.class_weight)
            assert found == (rounds, 7, weight)
    made = REFERENCES["logistic"][1](3, 7)
    assert (made.class_weight, made.max_iter) == ("balanced", 1000)


class _Constant:
    """Answers with the shares of the classes in what it was fitted to; notes its threads."""

    def fit(self, features: Any, labels: Any) -> None:
        assert len(features) == len(labels) == 5 and features[0, 0] == 1
        self.threads = [{pool["num_threads"] for pool in threadpool_info()}]
        self.classes_, counts = np.unique(labels, return_counts=True)
        self.shares = counts / counts.sum()

    def predict_proba(self, features: Any) -> Any:
        self.threads += [{pool["num_threads"] for pool in threadpool_info()}]
        return np.tile(self.shares, (len(features), 1)) + features[:, :1]


def test_of_the_test_rows_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = _Constant(), []
    make = lambda classes, seed: given.append((classes, seed)) or model  # noqa: E731
    monkeypatch.setitem(REFERENCES, "constant", ("constant", make))
    features, labels = np.arange(8, dtype=np.float32)[:, None], np.array([0, 3, 3, 1, 1, 1, 2, 0])
    found = probabilities(
        "constant", features, labels, np.arange(1, 6), np.array([7, 0]), 5, seed=9
    )
    # Classes 1 and 3 are trained on: three and two rows of five.
    np.testing.assert_allclose(found, [[0, 7.6, 0, 7.4, 0], [0, 0.6, 0, 0.4, 0]], rtol=1e-6)
    assert given == [(5, 9)] and model.threads == [{1}, {1}]


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_gives_every_class_a_probability(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a class without a training row it is 0; the rest is the model's own."""
    monkeypatch.setattr(references, "TREES", 0)
    monkeypatch.setattr(references, "LEAST_ROUNDS", 5)
    train = TRAIN[LABELS[TRAIN] != 1]
    found = probabilities(name, FEATURES, LABELS, train, TEST, 3, 0)
    with threadpool_limits(1):
        model = REFERENCES[name][1](3, 0).fit(FEATURES[train], LABELS[train])
        said = model.predict_proba(FEATURES[TEST])
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_allclose(found[:, [0, 2]], said)


@pytest.mark.parametrize("name", [name for name in REFERENCES if "trees" in name])
def test_trees_of_many_rows_learn_of_a_class_with_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of over 10,000 rows boosting would hold a tenth of each class out, and has one of this."""
    monkeypatch.setattr(references, "TREES", 0)
    monkeypatch.setattr(references, "LEAST_ROUNDS", 1)
    labels = np.repeat([0, 1, 2], [10_000, 100, 1]).astype(np.int32)
    features = (labels[:, None] + np.zeros((1, 1))).astype(np.float32)
    train = np.arange(len(labels))
    found = probabilities(name, features, labels, train, train[-200:], 3, 0)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found[:, 2] > 0).all()


@pytest.mark.parametrize("per_class", [2, 1])
@pytest.mark.parametrize("classes", [1000, 1001])
def test_boosting_may_stop_early_where_the_rows_it_holds_out_can_be_of_every_class(
    classes: int, per_class: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds out a tenth of over 10,000 rows, and of a class with one row nothing."""

    class Model:
        early_stopping: Any = "auto"
        classes_ = np.arange(classes)

        def fit(self, features: Any, labels: Any) -> None:
            pass

        def predict_proba(self, features: Any) -> Any:
            return np.ones((len(features), classes)) / classes

    model = Model()
    monkeypatch.setitem(references.REFERENCES, "trees", ("trees", lambda *_: model))
    labels = np.tile(np.arange(classes, dtype=np.int32), 2)[: classes * per_class]
    rows = np.arange(len(labels))
    probabilities("trees", np.zeros((len(rows), 1), np.float32), labels, rows, rows, classes, 0)
    allowed = classes == 1000 and per_class == 2
    assert model.early_stopping == ("auto" if allowed else False)
