"""One function over several parts of a batch in lock-step, layer by layer.

What a layer of `batch_norm` leaves open in a part, the sums over all rows, is known once every part
has come that far. So each part's function is traced, and the traces are worked off side by side:
each until it asks for a sum, which is then added up and given to all. Nothing is computed twice.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params

from imbsam_jax.passes._batch_norm import OVER_ROWS, ROWS


class Traced(NamedTuple):
    """A function of one argument, over one part of a batch.

    Attributes:
      program: its equations.
      shapes: its results, as shapes.
      rows: float[b], 1 for each row of the part, 0 for what fills it up.
    """

    program: ClosedJaxpr
    shapes: Any
    rows: jax.Array


def traced(function: Callable[[Any], Any], argument: Any, rows: jax.Array) -> Traced:
    """The function as `together` takes it; ValueError where none of its layers asks for a sum."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)(argument)
    if not _asks(program.jaxpr):
        raise ValueError(
            "shared_norm gives the parts of a batch the statistics of all of it, but no layer of "
            "losses_fn asks for them: normalise by imbsam_jax.batch_norm (imbsam_jax.nnx.BatchNorm "
            "is a layer of it), or use own_rows where examples do not see each other"
        )
    return Traced(program, shapes, rows)


def together(
    parts: Sequence[Traced], arguments: Sequence[Any], known: Sequence[jax.Array] | None = None
) -> tuple[list[Any], list[jax.Array]]:
    """(results of each part at its own argument, the sums that they were given, in order).

    `known` are sums to give them instead of their own.
    """
    runs = [
        _run(part.program.jaxpr, part.program.consts, jax.tree.leaves(at), part.rows)
        for part, at in zip(parts, arguments, strict=True)
    ]
    results: list[Any] = [None] * len(parts)

    def go_on(number: int, sent: Any) -> Any:
        """What it asks for next, None at its end."""
        try:
            return runs[number].send(sent)
        except StopIteration as end:
            structure = jax.tree.structure(parts[number].shapes)
            results[number] = jax.tree.unflatten(structure, end.value)
            return None

    given: list[jax.Array] = []
    asked = [go_on(k, None) for k in range(len(parts))]
    while any(total is not None for total in asked):
        if len({None if total is None else total.shape for total in asked}) > 1:
            raise ValueError(
                "losses_fn has other layers of batch_norm for one number of rows than for another"
            )
        given.append(reduce(operator.add, asked) if known is None else known[len(given)])
        asked = [go_on(k, given[-1]) for k in range(len(parts))]
    return results, given


def _run(
    jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], rows: jax.Array
) -> Generator[jax.Array, jax.Array, list[Any]]:
    """Evaluates it; yields a sum over the part's rows, is sent that over all, returns results."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        name = eqn.params["name"] if eqn.primitive.name == "name" else None
        if name == ROWS:
            if given[0].shape != rows.shape:
                raise ValueError(
                    f"batch_norm was given x of {given[0].shape[0]} rows in a part of "
                    f"{rows.shape[0]}: the batch must be its leading axis, and no other beside it"
                )
            found = [rows.astype(given[0].dtype)]
        elif name == OVER_ROWS:
            found = [(yield given[0])]
        elif not any(map(_asks, jaxprs_in_params(eqn.params))):
            found = _evaluated(jaxpr, eqn, given)
        elif eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"]
            found = yield from _run(inner.jaxpr, inner.consts, given, rows)
        else:
            raise ValueError(
                f"a layer of batch_norm lies inside {eqn.primitive.name}, which shared_norm cannot "
                "stop in for the other parts: leave jax.checkpoint (remat), scan and cond around "
                "such layers out, or use passes.whole"
            )
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluated(jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """One equation's results, of a program of its own: how one is bound changes with JAX."""
    places = [k for k, atom in enumerate(eqn.invars) if not isinstance(atom, Literal)]
    alone = jaxpr.replace(
        constvars=(), invars=[eqn.invars[k] for k in places], outvars=eqn.outvars, eqns=[eqn]
    )
    return list(jaxpr_as_fun(ClosedJaxpr(alone, ()))(*[values[k] for k in places]))


def _asks(jaxpr: Jaxpr) -> bool:
    return any(
        (eqn.primitive.name == "name" and eqn.params["name"] == OVER_ROWS)
        or any(map(_asks, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )
