"""Linear classifiers of long-tailed recognition: balanced in their norms, during or after training.

Pure functions on arrays: a kernel is float[F, C] (F features, C classes), so a class is a column.
Frequent classes get long columns; each method here evens them out in its own way.
"""

from imbsam_jax.classifiers._after_training import (
    adjust_logits,
    fold_scales,
    lws_logits,
    tau_normalise,
)
from imbsam_jax.classifiers._max_norm import (
    MaxNormState,
    max_norm,
    max_norm_project,
    max_norm_radius,
)
from imbsam_jax.classifiers._normalised import normalised_init, normalised_linear

__all__ = [
    "MaxNormState",
    "adjust_logits",
    "fold_scales",
    "lws_logits",
    "max_norm",
    "max_norm_project",
    "max_norm_radius",
    "normalised_init",
    "normalised_linear",
    "tau_normalise",
]
