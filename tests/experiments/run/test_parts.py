"""What a run is made of, looked at by itself; trained with is it in test_train.py"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.host.errors import RunError
from experiments.run import parts as made_of
from experiments.run.parts import (
    Parts,
    model_of,
    optimizer_of,
    order_of,
    passing_of,
    resolved,
    tail_of,
)
from experiments.run.settings import Settings
from experiments.step.passing import Passing
from imbsam_jax.losses import cross_entropy
from tiny import tiny_dataset

DATA = tiny_dataset()  # 40, 20, 10, 5, 3
STRATIFIED = Settings(sampling="stratified", eta=10)


@pytest.mark.parametrize(
    ("eta", "strict", "tail"),
    [(10, False, [2, 3, 4]), (10, True, [3, 4]), (3, False, [4]), (39.5, False, [1, 2, 3, 4])],
)
def test_the_tail_of_stratified_sampling(eta, strict, tail):
    found = tail_of(DATA, dataclasses.replace(STRATIFIED, eta=eta, strict=strict))
    assert np.flatnonzero(found).tolist() == tail
    for sampling in ("natural", "balanced"):
        assert tail_of(DATA, dataclasses.replace(STRATIFIED, sampling=sampling)) is None


@pytest.mark.parametrize(("eta", "strict", "lacks"), [(2.5, False, "tail"), (3, True, "tail"),
                                                      (40, False, "head")])  # fmt: skip
def test_there_must_be_a_head_and_a_tail(eta, strict, lacks):
    settings = dataclasses.replace(STRATIFIED, eta=eta, strict=strict)
    with pytest.raises(RunError, match=rf"--sampling stratified.*leaves no {lacks} class.*3 to 40"):
        tail_of(DATA, settings)


def test_a_class_without_an_image_makes_no_tail():
    """It is given the count of the smallest that has one."""
    counts = SimpleNamespace(class_counts=lambda: np.array([40, 20, 0]))
    with pytest.raises(RunError, match=r"leaves no tail class.*from 20 to 40"):
        tail_of(counts, STRATIFIED)
    assert tail_of(counts, dataclasses.replace(STRATIFIED, eta=20)).tolist() == [False, True, True]


def test_rows_are_drawn_by_the_seed_and_as_the_settings_say(monkeypatch):
    monkeypatch.setattr(made_of, "Order", lambda *given, **more: (*given, more))
    settings = dataclasses.replace(STRATIFIED, seed=5, batch_size=8, per_visit=3)
    kind, labels, seed, batch, more = order_of(DATA, settings, 4)
    assert (kind, seed, batch, more.pop("tail").tolist()) == (
        "stratified", 5, 8, [False, False, True, True, True]
    )  # fmt: skip
    assert labels is DATA.train_labels and more == {"per_visit": 3, "multiple": 4}


class Begun(NamedTuple):
    """A state of nothing but the key that it was drawn by."""

    key: Any
    batch_stats: Any = ()


def test_the_seed_decides_what_a_run_begins_with_and_what_its_steps_draw(monkeypatch):
    """By the halves of its key."""
    monkeypatch.setattr(made_of, "create_state", lambda model, tx, images, key, trained: Begun(key))
    made = Parts(DATA, "mlp", cross_entropy, Settings(seed=5))
    init, steps = jax.random.key_data(jax.random.split(jax.random.key(5)))
    np.testing.assert_array_equal(jax.random.key_data(made.initial.key), init)
    np.testing.assert_array_equal(made.run_on.key_data, steps)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_layers_compute_in_the_precision_that_is_asked_for(precision, dtype):
    assert model_of("mlp", 5, Settings(precision=precision), None).dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(("inside", "decay"), [(False, 0.25), (True, 0.0)])
def test_weight_decay_is_the_optimizers_or_the_methods(inside, decay):
    """Momentum half: of two steps without a gradient the second has that of the first, too."""
    settings = Settings(weight_decay=0.25, weight_decay_inside=inside, momentum=0.5)
    tx = optimizer_of(lambda step: 0.1, settings, 5)
    params = {"w": jnp.ones(2)}
    state, zero = tx.init(params), {"w": jnp.zeros(2)}
    first, state = tx.update(zero, state, params)
    second, _ = tx.update(zero, state, params)
    np.testing.assert_allclose(first["w"], [-0.1 * decay] * 2)
    np.testing.assert_allclose(second["w"], [-0.1 * 1.5 * decay] * 2)


@pytest.mark.parametrize(("max_norm", "at"), [("none", []), ("step", [1, 2, 3, 4]), ("epoch", [3])])
def test_the_classifier_is_projected_after_each_step_or_epoch(max_norm, at):
    """Columns of norm 1 and 3 are onto 1.2, the radius of weight balancing."""
    tx = optimizer_of(lambda step: 0.0, Settings(max_norm=max_norm), 3)
    params = {"head": {"kernel": jnp.array([[1.0, 3.0]])}}
    state, projected = tx.init(params), []
    for step in range(1, 5):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        found = optax.apply_updates(params, updates)["head"]["kernel"]
        if found[0, 1] != 3:
            projected.append(step)
    assert projected == at


@pytest.mark.parametrize("examples", ["dependent", "independent"])
def test_passes_that_leave_rows_out_have_room_for_what_is_drawn(examples):
    order = SimpleNamespace(buffers=lambda classes, rows: (classes, rows))
    found = passing_of(Settings(examples=examples, accumulate=4), order, 5)
    assert (found.examples, found.micro_batches) == (examples, 4)
    assert found == Passing(examples, 4) if found.room is None else found.room(16) == (5, 16)
    assert (found.room is None) == (examples == "dependent")


@pytest.mark.parametrize(("own", "shared"), [(False, 3), (True, 1)])
def test_devices_share_a_batch_or_have_their_own(own, shared, monkeypatch):
    places = []

    def make_feed(dataset, settings, place):
        places.append(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(made_of, "use_devices", lambda number: [None] * 3)
    monkeypatch.setattr(made_of, "make_feed", make_feed)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        Parts(DATA, "mlp", cross_entropy, Settings(), own_batches=own)
    with pytest.raises(KeyboardInterrupt):
        Parts(DATA, "mlp", cross_entropy, Settings())
    assert places == [(shared, 4, 2), (3, 4, 2)]


@pytest.mark.parametrize(("statistics", "updated"), [("updated", True), ("frozen", False)])
def test_what_a_step_minimises(statistics, updated, monkeypatch):
    asked = []

    def objective(*what, **more):
        asked.append((*what, more))
        raise KeyboardInterrupt

    monkeypatch.setattr(made_of, "Objective", objective)
    settings = Settings(statistics=statistics, mixup=0.5)
    with pytest.raises(KeyboardInterrupt):
        Parts(DATA, "mlp", "loss", settings, adversary="adversary")
    assert asked == [("loss", 5, 0.5, {"train_statistics": updated, "adversary": "adversary"})]


def test_a_seed_that_is_none_is_refused_before_anything_is_made():
    for seed in (-1, 2**32):
        with pytest.raises(RunError, match=f"seed.*{seed}"):
            Parts(None, "mlp", cross_entropy, Settings(seed=seed))


@pytest.mark.parametrize(
    ("platform", "asked", "steps"), [("cpu", 0, 1), ("gpu", 0, 50), ("cpu", 7, 7), ("gpu", 7, 7)]
)
def test_devices_and_steps_of_a_call_that_nobody_asks_for(platform, asked, steps, monkeypatch):
    """All that there are; on an accelerator fifty, so that it need not wait for the host."""
    there = [SimpleNamespace(platform=platform), SimpleNamespace(platform="other")]
    monkeypatch.setattr(made_of, "use_devices", lambda number: there if number == 0 else None)
    given = Settings(devices=0, steps_per_call=asked, lr=0.5)
    assert resolved(given) == dataclasses.replace(given, devices=2, steps_per_call=steps)


@pytest.mark.parametrize(
    ("seed", "other"), [(0, 2**31), (3, 2**31 + 3), (2**31, 0), (2**32 - 1, 2**31 - 1)]
)
def test_another_seed_is_far_away(seed, other):
    assert made_of.another_seed(seed) == other


@pytest.mark.parametrize("found", [None, 9, 10, 11])
def test_a_second_stage_starts_from_the_last_step_alone(found, monkeypatch, tmp_path):
    """Of two epochs with five steps each; the fresh ones are those of another seed, linear."""
    asked, closed, names = [], [], ("params", "batch_stats")

    def parts(dataset, model, loss, settings):
        about = settings.seed, settings.classifier
        state = SimpleNamespace(variables=lambda: dict.fromkeys(names, about))
        return SimpleNamespace(steps_per_epoch=5, initial=state)

    class Checkpoints:
        def __init__(self, *what, **more):
            asked.append((*what, more))

        def restore(self, like):
            state = SimpleNamespace(step=np.int32(found or 0), variables=lambda: "trained")
            return None if found is None else (state, {})

        def close(self):
            closed.append(True)

    monkeypatch.setattr(made_of, "Parts", parts)
    monkeypatch.setattr(made_of, "Checkpoints", Checkpoints)
    (tmp_path / "config.json").write_text('{"a": 1}')
    args = (Path(tmp_path), DATA, "mlp", Settings(epochs=2, seed=3, classifier="cosine"))
    if found == 10:
        fresh = dict.fromkeys(names, (2**31 + 3, "linear"))
        assert made_of.last_variables(*args) == ("trained", fresh)
    else:
        with pytest.raises(
            RunError, match=r"holds no whole checkpoint of its last epoch.*--resume"
        ):
            made_of.last_variables(*args)
    assert asked == [(tmp_path / "checkpoints", {"config": {"a": 1}, "reading": True})]
    assert closed == [True]
