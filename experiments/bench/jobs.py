"""The jobs of a table: first stages side by side, then the second stages of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments.bench.training import Bench, Curve, Job
from experiments.host.errors import Diverged, RunError


class Planned(NamedTuple):
    """A job, and what the table says of it.

    Attributes:
      job: of a second stage without the parameters that it starts from.
      description: its fields in summary.json that do not come of training: rule, rule_args,
        ascent, loss, loss_args, stage2, stage2_args.
      after: the job whose second stage this is, by name; None for a first stage.
      start: of a second stage: (params of the first, fresh params) -> params, pure.
    """

    job: Job
    description: dict[str, Any]
    after: str | None = None
    start: Callable[[Any, Any], Any] | None = None


class Line(NamedTuple):
    """A line of the table: what was trained, and what came of it.

    Attributes:
      description: that of the job.
      curve: None where it diverged, or its first stage did.
      diverged: why, or None.
      params: what it ended with, of all seeds, [S, ...] each; None where it diverged.
    """

    description: dict[str, Any]
    curve: Curve | None
    diverged: str | None = None
    params: Any = None


def train(bench: Bench, planned: Sequence[Planned]) -> list[Line]:
    """A line of each, first stages before second ones.

    Raises:
      RunError: no first stage was trained to its end.
    """
    firsts = [one for one in planned if one.after is None]
    found = bench.train([one.job for one in firsts], "training")
    lost = [one for one in found.values() if isinstance(one, Diverged)]
    if len(lost) == len(found):
        raise RunError(f"{lost[0]}; no row was trained to its end, and nothing was written")
    lines = [_line(one.description, found[one.job.name]) for one in firsts]
    fresh = bench.fresh(draw=1)
    for one in planned:
        if one.after is None or one.start is None:
            continue
        first = found[one.after]
        if isinstance(first, Diverged):
            lines.append(_line(one.description, first))
            continue
        job = one.job._replace(params=jax.vmap(one.start)(first[1], fresh))
        lines.append(_line(one.description, bench.train([job], job.name)[job.name]))
    return lines


def _line(description: dict[str, Any], found: tuple[Curve, Any] | Diverged) -> Line:
    if isinstance(found, Diverged):
        return Line(description, None, str(found))
    return Line(description, found[0], params=found[1])
