"""Twelve float64 steps of every rule, through both doors, against the slow transcription.

Among the twelve batches are some without a tail example, some of tail examples alone and a last one
that is not full. The padded variants hold the same rows in buffers of a fixed size, scattered
between rows of garbage that the mask marks as padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imbsam_jax as ij
import reference
from rule_table import (
    ASCENTS,
    CC_SAM,
    CLASSES,
    COUNTS,
    ETA,
    FEATURES,
    LEARNING_RATE,
    MOMENTUM,
    RHO,
    ROWS,
    RULES,
    WEIGHT_DECAY,
    Row,
    descent,
    init_params,
    losses_fn,
    quick_jit,
    to_library,
    to_reference,
)

# door, labels, padded
VARIANTS = {
    "value_and_grad": ("value_and_grad", "hard", False),
    "value_and_grad-soft-padded": ("value_and_grad", "soft", True),
    "value_and_grad-padded": ("value_and_grad", "hard", True),
    "sharpness_aware-soft": ("sharpness_aware", "soft", False),
    "sharpness_aware-padded": ("sharpness_aware", "hard", True),
}


def variants_of(row: Row) -> list[tuple[str, ...]]:
    """Every pair of choices occurs; rows that differ from another in one option run over few.

    The first are the quick ones, of neighbours in a table not the same.
    """
    if row in RULES:
        both = [
            ("value_and_grad", "sharpness_aware-padded"),
            ("value_and_grad-soft-padded", "sharpness_aware-soft"),
        ]
        return both[:: 1 if RULES.index(row) % 2 else -1]
    if row in ASCENTS:
        each = [("value_and_grad",), ("sharpness_aware-padded",)]
        return each[:: -1 if ASCENTS.index(row) % 2 else 1]
    padded = "value_and_grad-soft-padded" if row.soft else "value_and_grad-padded"
    return [("value_and_grad", padded) if row == CC_SAM[0] else (padded,)]


SIZES = (7,) * 11 + (4,)
KINDS = (
    "mixed", "no_tail", "mixed", "only_tail", "mixed",
    "no_tail", "mixed", "only_tail", "mixed", "no_tail", "only_tail", "mixed",
)  # fmt: skip
ROOM = 10  # rows of a padded buffer; 7 / 10 is no binary fraction
STEPS = len(SIZES)


def soften(y: np.ndarray) -> np.ndarray:
    """Mixup of each row's label with its neighbour's."""
    one_hot = reference.soft_labels(y, CLASSES)
    return 0.7 * one_hot + 0.3 * np.roll(one_hot, 1, axis=0)


def batches(labels: str) -> list[tuple[np.ndarray, np.ndarray]]:
    made = reference.make_batches(3, COUNTS, SIZES, KINDS, eta=ETA, features=FEATURES)
    return made if labels == "hard" else [(x, soften(y)) for x, y in made]


def padded(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows scattered over ROOM places; in the others large inputs and labels of no class."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(ROOM)[: len(x)]
    wide_x = 1e6 * rng.normal(size=(ROOM, x.shape[1]))
    wide_y = (
        rng.choice([-1, 0, CLASSES, 10**6], size=ROOM)
        if y.ndim == 1
        else 1e6 * rng.normal(size=(ROOM, CLASSES))
    )
    mask = np.zeros(ROOM, bool)
    wide_x[places], wide_y[places], mask[places] = x, y, True
    return wide_x, wide_y, mask


def transcription(row: Row, labels: str) -> list[reference.Params]:
    return reference.train(
        lambda params, x, y, step: row.gradient(params, x, y, step, RHO),
        init_params(), batches(labels), LEARNING_RATE, MOMENTUM, decay_at_theta(row),
    )  # fmt: skip


def decay_at_theta(row: Row) -> float:
    """What the optimizer adds: nothing where the perturbed loss has a decay of its own."""
    return 0.0 if row.ascent.weight_decay else WEIGHT_DECAY


def trained(row: Row, variants: Any, short: bool) -> dict[str, list[reference.Params]]:
    """Parameters after each step of each variant.

    One jitted program advances the padded ones, one the others; the last step, whose batches are
    short, is not jitted where that changes a shape (but for CC-SAM, whose loops JAX would compile
    piece by piece). Without `short` that step is left out.
    """
    value_and_grad = row.value_and_grad(losses_fn)
    after = descent(decay_at_theta(row))
    whole = None if row.rule is None else optax.chain(row.transform(), after)

    def advance(carry: Any, batch: Any, step: Any, door: str) -> Any:
        params, state = carry
        x, y, mask = batch
        if door == "value_and_grad":
            _, grads = value_and_grad(params, y, x, y, step=step, mask=mask)
            updates, state = after.update(grads, state, params)
        else:
            fn = ij.class_weighted_grad(losses_fn, y, x, y, mask=mask)
            updates, state = whole.update(fn, state, params)
        return optax.apply_updates(params, updates), state

    def advance_all(carries: Any, batches: Any, step: Any) -> Any:
        return {
            name: advance(carries[name], batches[name], step, VARIANTS[name][0]) for name in batches
        }

    jitted = quick_jit(advance_all)
    params = to_library(init_params(), jnp.float64)
    carries = {
        name: (params, (after if VARIANTS[name][0] == "value_and_grad" else whole).init(params))
        for name in variants
    }
    history: dict[str, list[reference.Params]] = {name: [] for name in variants}
    for step in range(STEPS):
        full, in_buffers = {}, {}
        for name in variants:
            _, labels, pad = VARIANTS[name]
            x, y = batches(labels)[step]
            if not pad and not short and SIZES[step] != SIZES[0]:
                continue
            if pad:
                in_buffers[name] = padded(x, y, step)
            else:
                full[name] = (x, y, None)
        eagerly = SIZES[step] != SIZES[0] and row.door is None
        advance_full = advance_all if eagerly else jitted
        carries |= advance_full(carries, full, step) | jitted(carries, in_buffers, step)
        for name in (*full, *in_buffers):
            history[name].append(to_reference(carries[name][0]))
    return history


# What other rows take in as well; test_gradient.py has one step of every method and ascent, and
# test_gsa.py the plain direction.
TAKEN_IN = (
    "focal_sam", "imbsam-p1.5", "imbsam-p3", "sam-pinf", "imbsam-asam", "imbsam_release-group_mean",
    "imbsam_release-decay", "cc_sam-all-five_at_once", "gsa-plain",
)  # fmt: skip


# A short batch without a mask compiles once more what the full ones did: quickly in these rows.
SHORT = ("sam", "imbsam", "gsa", "cc_sam")


def cases() -> Iterator[Any]:
    for row in ROWS:
        for place, variants in enumerate(variants_of(row)):
            slow = row.id in TAKEN_IN or place > 0
            yield pytest.param(
                row, variants, slow or row.id in SHORT,
                id=f"{row.id}{'-others' * place}", marks=[pytest.mark.slow] * slow,
            )  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("row", "variants", "short"), [*cases()])
def test_twelve_steps_equal_the_transcription(
    row: Row, variants: tuple[str, ...], short: bool
) -> None:
    expected = {labels: transcription(row, labels) for _, labels, _ in map(VARIANTS.get, variants)}
    for variant, history in trained(row, variants, short).items():
        steps = STEPS if short or VARIANTS[variant][2] else STEPS - 1
        pairs = zip(history, expected[VARIANTS[variant][1]][:steps], strict=True)
        for step, (got, want) in enumerate(pairs):
            for name in reference.ALL:
                np.testing.assert_allclose(
                    got[name], want[name], rtol=0, atol=1e-10,
                    err_msg=f"{name} after step {step} of {variant}",
                )  # fmt: skip
