"""The settings that a comparison chose, as Python that trains with them."""

from __future__ import annotations

from typing import Any

from experiments.bench.comparison import Recipe, Row
from experiments.bench.lanes import MOMENTUM

_RULES = {
    "sgd": "rules.sgd(len(weighed_counts))",
    "sam": "rules.sam(len(weighed_counts), rho={rho})",
    "imbsam": "rules.imbsam(weighed_counts, rho={rho}, eta={eta})",
    "reweighted_sam": "rules.reweighted_sam(weighed_counts, rho={rho}, eta={eta}, "
    "tail_weight={tail_weight})",
    "focal_sam": "rules.focal_sam(weighed_counts, rho={rho}, gamma={gamma}, strength={strength})",
    "gsa": "rules.gsa(weighed_counts, groups={groups}, scale={gsa_scale})",
}
_LOSSES = {
    "cross_entropy": "losses.cross_entropy(logits, y)",
    "logit_adjusted": "losses.logit_adjusted(class_counts, tau={tau})(logits, y)",
    "focal": "losses.focal({focal_gamma})(logits, y)",
    "class_balanced": "class_weights[w] * losses.cross_entropy(logits, y)",
}
# Of --perturb; parameters are a list of layers.
_MOVES = {
    "all": "",
    "without-last-bias": ", ascent=Ascent(perturb=lambda layers: is_last_bias(layers, False))",
    "last-bias": ", ascent=Ascent(perturb=lambda layers: is_last_bias(layers, True))",
}
_LAST_BIAS = '''

def is_last_bias(layers, yes):
    """Like the parameters: `yes` for the bias of the last layer, else the contrary."""
    found = [{"kernel": not yes, "bias": not yes} for _ in layers]
    found[-1]["bias"] = yes
    return found
'''
_WEIGHTS = """
    class_weights = losses.class_balanced_weights(weighed_counts, {beta})
    class_weights *= weighed_counts.sum() / (weighed_counts * class_weights).sum()
    class_weights = jnp.asarray(class_weights, jnp.float32)"""
_SHUFFLED = """\
def batches(weighed, seed):
    \"\"\"int[steps, b]: one permutation of the rows after another, cut into batches.\"\"\"
    draw, size = np.random.default_rng(seed), min(BATCH_SIZE, len(weighed))
    epochs = -(-STEPS * size // len(weighed))
    rows = np.concatenate([draw.permutation(len(weighed)) for _ in range(epochs)])
    return rows[: STEPS * size].reshape(STEPS, size)
"""
_BALANCED = """\
def batches(weighed, seed):
    \"\"\"int[steps, b]: each place of a batch has the next class in turn.\"\"\"
    draw, size = np.random.default_rng(seed), min(BATCH_SIZE, len(weighed))
    members = [np.flatnonzero(weighed == c) for c in np.unique(weighed)]
    rows = [draw.choice(members[k % len(members)]) for k in range(STEPS * size)]
    return np.asarray(rows).reshape(STEPS, size)
"""

_IN_QUOTES = str.maketrans({"\\": r"\\", '"': r"\""})
_PROGRAM = '''\
"""{row} with the settings that `experiments.compare` chose on {source}.

Needs imbsam_jax, JAX, Optax and NumPy; as a script, the experiments of imbsam_jax, too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imbsam_jax import {imported}losses, rules, value_and_grad

WIDTHS = {widths}
STEPS, BATCH_SIZE = {steps}, {batch_size}
LR, MOMENTUM, WEIGHT_DECAY = {lr}, {momentum}, {weight_decay}
SEED = {seed}  # of the first weights, the batches and the features of text


def initial(key, inputs, classes):
    """Parameters of the network: Kaiming normal, biases 0."""
    sizes = [inputs, *WIDTHS, classes]
    make = jax.nn.initializers.he_normal()
    return [
        {{"kernel": make(k, (a, b)), "bias": jnp.zeros(b)}}
        for k, a, b in zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:])
    ]


def logits_of(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params[-1]["kernel"] + params[-1]["bias"][None]
{last_bias}

{batches}

def train(x, y, weighed, params, rows):
    """Parameters after training.

    x: float32[n, d]; y: int32[n], classes; weighed: int32[n], what the rule weighs by (y, or
    groups); params: of `initial`; rows: int[steps, b], of `batches`.
    """
    class_counts, weighed_counts = np.bincount(y), np.bincount(weighed){weights}
    x, y, weighed = jnp.asarray(x), jnp.asarray(y), jnp.asarray(weighed)

    def losses_fn(params, x, y, w):
        logits = logits_of(params, x)
        return {loss}, None

    gradient = value_and_grad(losses_fn, {rule}{ascent})
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(optax.cosine_decay_schedule(LR, len(rows)), momentum=MOMENTUM),
    )

    def step(carry, i):
        params, state = carry
        (loss, _), grads = gradient(params, weighed[i], x[i], y[i], weighed[i])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    carry = params, optimizer.init(params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.asarray(rows)))(carry)[0][0]


if __name__ == "__main__":
    from experiments.data import columns
    from experiments.data.splits import training_rows
    from experiments.data.table import read

    table = read({read})
    rows = training_rows(table{cut})
    x = columns.fit(table, rows, seed=SEED)(table.columns)[rows]
    y, weighed = table.labels[rows], table.weighed[rows]
    params = initial(jax.random.key(SEED), x.shape[1], table.num_classes)
    params = train(x, y, weighed, params, batches(weighed, SEED))
    guess = np.asarray(logits_of(params, x)).argmax(axis=1)
    recall = [(guess[y == c] == c).mean() for c in range(table.num_classes)]
    print(f"balanced accuracy on the rows trained on: {{100 * np.mean(recall):.1f}}%")
'''


def program(
    row: Row,
    described: dict[str, Any],
    recipe: Recipe,
    *,
    source: str,
    read: str,
    groups: list[int] | None,
    cut: str = "",
) -> str:
    """Python that trains this row with these settings.

    Args:
      row: the row.
      described: its settings, eta in training rows.
      recipe: how it was trained.
      source: of the data, in words.
      read: the arguments of `data.table.read`, as Python.
      groups: of GSA, which group each class is in.
      cut: further arguments of `data.splits.training_rows`, as Python.
    """
    values = {**described, "groups": groups}
    weights = _WEIGHTS.format(**values) if row.loss == "class_balanced" else ""
    ascent = "" if row.rule == "sgd" else _MOVES[row.perturb]
    return _PROGRAM.format(
        row=row.name, source=source.translate(_IN_QUOTES), read=read, cut=cut,
        widths=(recipe.net.width,) * recipe.net.depth,
        steps=recipe.steps, batch_size=recipe.batch_size, seed=recipe.seed, lr=described["lr"],
        momentum=MOMENTUM, weight_decay=described["weight_decay"], weights=weights,
        batches=_BALANCED if row.sampling == "balanced" else _SHUFFLED,
        imported="Ascent, " * bool(ascent), last_bias=_LAST_BIAS * bool(ascent), ascent=ascent,
        loss=_LOSSES[row.loss].format(**values), rule=_RULES[row.rule].format(**values),
    )  # fmt: skip
