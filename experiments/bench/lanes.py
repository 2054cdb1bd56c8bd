"""Lanes: many settings of a small network on one training set, trained in one compiled program.

A lane is one setting: learning rate, weight decay, the numbers of its rule's table (class weights,
radii) and those of its loss. All of them are data of the program, mapped over with vmap; the
batches and the initial weights are the same for every lane of a call, so that lanes are paired and
the first layer sees each batch once for all of them. What cannot be data is `Structure`: lanes that
share it share the program, whatever training set they are on.

The steps are those of every run here: `step.make_step`, scanned by `step.many_steps`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.models import MLP
from experiments.step.many import many_steps
from experiments.step.methods import Tabled
from experiments.step.objectives import Objective
from experiments.step.optimizer import learning_rate, optimizer
from experiments.step.state import start_state
from experiments.step.step import Inputs, Rows, make_step
from imbsam_jax import losses

MOMENTUM = 0.9
# Rows of the held-out part that a network sees at once: memory, not results, hangs on it.
BLOCK = 512


class Net(NamedTuple):
    """The network: `depth` hidden layers of `width` ReLUs, 0 of them is logistic regression."""

    width: int
    depth: int
    classes: int

    def module(self) -> MLP:
        return MLP(self.classes, features=(self.width,) * self.depth)


class Structure(NamedTuple):
    """What lanes of one program have in common.

    Attributes:
      method: any method whose table is built like theirs; its own numbers are not used.
      focal: whether the loss is modulated by its size.
    """

    method: Tabled
    focal: bool = False

    def key(self) -> Any:
        """The same of structures that are compiled to the same program."""
        table = self.method.numbers()
        of_table = (table.base is None, np.shape(table.groups)[0])
        return of_table, tuple(self.method.ascent.of(self.method.rule)), self.focal


class Lane(NamedTuple):
    """The numbers of one lane, or, with a leading axis, of several.

    Labels of a program are cells: a class, or where rows are weighed by another column a pair of
    class and group. The loss reads a cell's class, the table its group.

    Attributes:
      table: the rule's `ClassWeights`, over cells.
      offsets: float[C], added to the logits in the loss: tau log pi of logit adjustment, else 0.
      weights: float[K], of each cell's loss; 1 for most.
      focal_gamma: exponent of a focal loss; used where `Structure.focal`.
      lr: initial learning rate; it falls as a cosine to 0.
      weight_decay: coupled, at theta.
    """

    table: Any
    offsets: Any
    weights: Any
    focal_gamma: Any
    lr: Any
    weight_decay: Any


class Batches(NamedTuple):
    """What the lanes of a call are trained on.

    Attributes:
      features: float32[N, d], of all rows.
      cells: int32[N].
      order: int32[steps, b], the training rows of each step.
      held: int32[M], rows to be predicted afterwards, padded to whole blocks with any row.
      key: of the initial weights.
    """

    features: Any
    cells: Any
    order: Any
    held: Any
    key: Any


def stacked(lanes: list[Lane]) -> Lane:
    """Lanes with a leading axis, in float32."""
    return jax.tree.map(lambda *x: np.stack([np.asarray(one, np.float32) for one in x]), *lanes)


def in_blocks(rows: NDArray[Any], least: int = 0) -> NDArray[np.int32]:
    """Row numbers padded with row 0 to whole blocks, to at least so many."""
    size = -(-max(len(rows), least, 1) // BLOCK) * BLOCK
    return np.pad(np.asarray(rows, np.int32), (0, size - len(rows)))


def order_of(
    rows: NDArray[Any],
    steps: int,
    batch_size: int,
    draw: np.random.Generator,
    classes: NDArray[Any] | None = None,
) -> NDArray[np.int32]:
    """int32[steps, b]: one permutation of the rows after another, cut into batches of one size.

    Args:
      rows: training rows, n of them.
      batch_size: b is this, or n where that is less.
      classes: of each of the rows, for balanced sampling: each place of a batch has the next class
        in turn, and each class its rows in one permutation after another. None is natural.
    """
    size = min(batch_size, len(rows))
    total = steps * size
    if classes is None:
        return _stream(rows, total, draw).reshape(steps, size)
    present = np.unique(classes)
    turn = np.arange(total) % len(present)
    found = np.empty(total, np.int32)
    for k, c in enumerate(present):
        places = turn == k
        found[places] = _stream(rows[classes == c], int(places.sum()), draw)
    return found.reshape(steps, size)


def _stream(rows: NDArray[Any], total: int, draw: np.random.Generator) -> NDArray[np.int32]:
    epochs = -(-total // len(rows))
    drawn = [draw.permutation(rows) for _ in range(epochs)]
    return np.concatenate(drawn)[:total].astype(np.int32) if drawn else np.empty(0, np.int32)


def program(net: Net, structure: Structure, label_of: tuple[int, ...], keep: bool) -> Any:
    """A function of (Lane with a leading axis L, Batches), to be jitted.

    Args:
      label_of: the class of each cell, K of them.
      keep: return the parameters, too.

    Returns:
      (logits float32[L, M, C] of the held rows, parameters with a leading axis L or None).
    """
    module, cells = net.module(), len(label_of)

    def one(lane: Lane, batches: Batches) -> Any:
        steps, size = batches.order.shape
        variables = module.init(batches.key, batches.features[:1], train=False)
        tx = optimizer(learning_rate("cosine", lane.lr, steps, 1), MOMENTUM, lane.weight_decay)
        state = start_state(module, tx, variables)
        objective = Objective(_loss(structure, lane, label_of), cells)
        step = make_step(structure.method.given(lane.table), objective, _as_it_is)
        rows = Rows(index=batches.order)
        inputs = Inputs(batches.features, batches.cells)
        state, _ = many_steps(step, state, inputs, rows, jnp.arange(size), size, batches.key)

        def predict(block: jax.Array) -> Any:
            return module.apply({"params": state.params}, batches.features[block], train=False)

        logits = jax.lax.map(predict, batches.held.reshape(-1, BLOCK))
        return logits.reshape(-1, net.classes), state.params if keep else None

    shared = Batches(*[None] * len(Batches._fields))
    return jax.vmap(one, in_axes=(0, shared))


def _as_it_is(features: jax.Array, *_: Any) -> jax.Array:
    return features


def _loss(structure: Structure, lane: Lane, label_of: tuple[int, ...]) -> Any:
    """The loss of a lane: of a class's logits moved by offsets, weighted by cell."""
    classes = np.asarray(label_of, np.int32)

    def loss(logits: jax.Array, cells: jax.Array, step: Any = None) -> jax.Array:
        plain: Any = losses.cross_entropy
        if structure.focal:
            plain = losses.focal(lane.focal_gamma)
        labels = jnp.asarray(classes)[cells]
        return lane.weights[cells] * plain(logits + lane.offsets[None], labels)

    return loss
