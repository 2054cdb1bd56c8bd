"""A model in three parts: what is moved, what is not, and the features that all points share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax.rows import check_losses, check_pair, marked


class ModelParts:
    """The model as a function of what moves, what does not, and the features.

    Where the classifier alone moves, its features are computed once, at theta, and are the third
    part; their gradient is pulled back once, as all points are summed up. Where everything moves,
    each point has features of its own, and the third part is empty.

    Attributes:
      parts: (leaves that move, leaves that do not, features), as they are at theta.
    """

    def __init__(
        self,
        features_fn: Any,
        params: Any,
        args: Any,
        labels: jax.Array,
        classifier: Any,
        *,
        shared: bool,
    ) -> None:
        self._features_fn, self._args, self._labels = features_fn, args, labels
        self._shared = shared
        moving, fixed, self._join = _split(params, classifier if shared else None)
        features: Any = ()
        if self._shared:
            features, self._pull_features, self._aux = jax.vjp(self._features, params, has_aux=True)
        self.parts = (moving, fixed, features)

    def _features(self, params: Any) -> tuple[Any, Any]:
        return _check_features(self._features_fn(params, *self._args))

    def losses(self, fn: Any, moving: Any, fixed: Any, features: Any) -> tuple[jax.Array, Any]:
        """(float[B], (aux of the features, aux of the head)), by this fn of the head."""
        params = self._join(moving, fixed)
        features, aux = (features, self._aux) if self._shared else self._features(params)
        losses, head_aux = check_pair(fn(params, features, *self._args))
        return check_losses(losses, self._labels), (aux, head_aux)

    def joined(self, of_parts: Any) -> Any:
        """Gradients like the parameters, in their dtypes, of those of the parts."""
        of_parts = jax.tree.map(lambda x, like: x.astype(like.dtype), of_parts, self.parts)
        grads = self._join(of_parts[0], of_parts[1])
        if self._shared:
            grads = jax.tree.map(jnp.add, grads, self._pull_features(of_parts[2])[0])
        return grads


def _split(params: Any, classifier: Any) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """Leaves that move, leaves that do not, and how to put them together again."""
    leaves, structure = jax.tree.flatten(params)
    marks = [True] * len(leaves)
    if isinstance(classifier, str):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        names = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path in paths]
        marks = [classifier in entries for entries in names]
        if not any(marks):
            known = sorted({entries[0] for entries in names if entries})
            raise ValueError(
                f"no parameter lies under {classifier!r}: name the classifier by classifier=; "
                f"the top level has {', '.join(known) or 'no names'}"
            )
    elif classifier is not None:
        marks = marked(classifier, params, "classifier")
        if not any(marks):
            raise ValueError("the mask given as classifier marks no parameter")

    def join(moving: list[Any], fixed: list[Any]) -> Any:
        first, second = iter(moving), iter(fixed)
        return jax.tree.unflatten(structure, [next(first if m else second) for m in marks])

    moving = [leaf for leaf, mark in zip(leaves, marks, strict=True) if mark]
    fixed = [leaf for leaf, mark in zip(leaves, marks, strict=True) if not mark]
    return moving, fixed, join


def _check_features(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "features_fn must return a pair (features, aux); return (features, None) where there "
            f"is nothing else to return. Got {type(result).__name__}"
        )
    return result
