"""How the passes over a batch are run; `value_and_grad(losses_fn, rule, passes=...)` takes one.

| passes                               | cost    | gradient                               |
|--------------------------------------|---------|----------------------------------------|
| whole(micro_batches, batched, carry) | 8/3     | exact for every model                  |
| own_rows(buffers, batched)           | 1 + f   | exact where examples do not see others |
| split_norm(buffers, batched, carry)  | 1 + 2f  | another, for batch normalisation       |
| shared_norm(buffers, batched)        | 1 + f   | a third, for batch normalisation       |

Costs are ImbSAM's with a share f of tail rows, in units of SGD's forward and backward pass over the
batch, without the padding of buffers. A new one is a new file here, named in this table and in
`__all__`: a frozen dataclass whose `over(losses_fn, params, rows, table, axis_name)` returns a
`Seen`, which is what core.py asks for with the losses and aux of the pass at theta (rows.py and
_batch.py have both; they are not public, as passes are made inside of the library). gradient.py
names it in a refusal; runs take it by experiments/step/{passing,step}.py.
"""

from imbsam_jax.passes._batch import Batch, Passes
from imbsam_jax.passes._batch_norm import batch_norm
from imbsam_jax.passes._batch_renorm import batch_renorm
from imbsam_jax.passes._buffers import Buffers, binomial_buffers, stratified_buffers
from imbsam_jax.passes._own_rows import own_rows
from imbsam_jax.passes._shared_norm import shared_norm
from imbsam_jax.passes._split_norm import split_norm
from imbsam_jax.passes._whole import whole

__all__ = [
    "Batch",
    "Buffers",
    "Passes",
    "batch_norm",
    "batch_renorm",
    "binomial_buffers",
    "own_rows",
    "shared_norm",
    "split_norm",
    "stratified_buffers",
    "whole",
]
