"""What training changes and keeps: the state of a run, and which of its parameters are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from flax import traverse_util
from flax.training import train_state

# Which parameters are trained, by their path; the rest is frozen. The classifier always is, but
# for "scales", of which it has some.
TRAINED: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "all": lambda path: True,
    "head": lambda path: path[0] == "head",
    "scales": lambda path: path[0] == "head" and path[-1] == "scales",
    # What models/adapters.py adds; the biases of a transformer's blocks; their LayerNorms.
    "adapter": lambda path: path[0] == "head" or any(x.startswith("adapter") for x in path),
    "bias": lambda path: path[0] == "head" or (_in_block(path) and path[-1] == "bias"),
    "norm": lambda path: path[0] == "head" or (_in_block(path) and path[-2].startswith("norm")),
}


def _in_block(path: tuple[str, ...]) -> bool:
    return path[0].startswith("blocks")


class TrainState(train_state.TrainState):
    """Flax's train state, with batch statistics and with parameters that are not trained.

    Attributes:
      batch_stats: running statistics of batch normalisation, {} without.
      frozen: the rest of the parameters, {} where all of them are trained.
      extra: what the method keeps from step to step, {} for most.
    """

    batch_stats: Any
    frozen: Any
    extra: Any

    def variables(self) -> dict[str, Any]:
        return {"params": merge(self.params, self.frozen), "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    images: jax.Array,
    key: jax.Array,
    trained: str = "all",
) -> TrainState:
    """Fresh parameters for images float[B, H, W, C] (their values do not matter)."""
    variables = model.init(key, images, train=False)
    return start_state(model, tx, variables, trained)


def start_state(
    model: nn.Module, tx: optax.GradientTransformation, variables: Any, trained: str = "all"
) -> TrainState:
    """A state that trains some of these variables from here, one of TRAINED."""
    params, frozen = split(variables["params"], trained)
    return TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=tx,
        batch_stats=variables.get("batch_stats", {}),
        frozen=frozen,
        extra={},
    )


def split(params: Any, trained: str) -> tuple[Any, Any]:
    """(trained, frozen), by one of TRAINED."""
    if trained not in TRAINED:
        raise ValueError(f"unknown part {trained!r}; choose from {', '.join(TRAINED)}")
    if trained == "all":
        return params, {}
    flat = traverse_util.flatten_dict(params)
    chosen = {k: v for k, v in flat.items() if TRAINED[trained](k)}
    if not any(trained in ("head", "scales") or k[0] != "head" for k in chosen):
        raise ValueError(f"this model has no {trained} to train")
    rest = {k: v for k, v in flat.items() if k not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(rest)


def merge(params: Any, frozen: Any) -> Any:
    """What `split` took apart."""
    if not frozen:
        return params
    flat = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(flat)
