"""How the passes over a batch are run, as one value for every batch of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imbsam_jax import passes

# In the library: whole, own_rows, split_norm, shared_norm.
EXAMPLES = ("dependent", "independent", "split_norm", "shared_norm")
# Of (images, target, statistics, logits), which a method gives to value_and_grad.
BATCHED = (True, True, False, True)


@dataclass(frozen=True)
class Passing:
    """The passes of imbsam_jax over a batch of any number of rows.

    Attributes:
      examples: one of EXAMPLES: each pass sees the whole batch; or the rows with weight in it,
        which is the same where examples do not see each other; or the same of the groups alone,
        with batch normalisation by `step.statistics`, which is another gradient; or head and tail
        side by side in one pass, by statistics that they share, which is a third.
      micro_batches: into how many parts a whole batch is cut, one after the other in memory.
      room: rows of a batch -> `buffers` of imbsam_jax.passes, where passes leave rows out.
    """

    examples: str = "dependent"
    micro_batches: int = 1
    room: Callable[[int], passes.Buffers] | None = None

    def over(self, rows: int) -> passes.Passes:
        """The passes over a batch of so many rows, of one device."""
        if self.examples == "dependent":
            return passes.whole(self.micro_batches, BATCHED)
        assert self.room is not None
        buffers = self.room(rows)
        if self.examples == "independent":
            return passes.own_rows(buffers, BATCHED)
        if self.examples == "shared_norm":
            return passes.shared_norm(buffers, BATCHED)
        return passes.split_norm(buffers, BATCHED, carry=_by_its_statistics)


def _by_its_statistics(args: tuple[Any, ...], aux: Any) -> tuple[Any, ...]:
    """A group's rows are normalised by what the pass at theta noted."""
    images, target, *_ = args
    noted, _ = aux
    return images, target, noted, None
