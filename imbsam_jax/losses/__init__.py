"""Per-example losses: logits and labels in, one loss per example out, never averaged.

Every classification loss here is called as `loss(logits, labels, step=None, mask=None) -> float[B]`
and has one meaning for soft labels (mixup): the mean over the label,

    loss(z, y) = sum_c y_c loss_c(z),      loss_c(z) = the loss if the label were c,

which for mixup is `lam * loss(z, a) + (1 - lam) * loss(z, b)`. Each of them is therefore a table
`loss_c(z)`, float[B, C], and wrappers (`weighted`, `focal`, `smoothed`, `deferred`) act on tables:

    loss = losses.ldam(class_counts, max_margin=0.5, scale=30.0)
    weights = losses.class_balanced_weights(class_counts)
    loss = losses.deferred(loss, losses.weighted(loss, weights), switch_step=160 * steps_per_epoch)
    losses_fn = lambda params, x, y, step: (loss(model(params, x), y, step), None)

Averages are taken over the batch, by `value_and_grad` or by you: a loss that is to be divided by
something else (`weighted(..., normalise="weights")`) carries the factor in each row.

Called in their own ways: the two losses of anomaly detection, `deviation_loss` and `deep_sad_loss`,
take what their networks give (a score, an embedding) and labels 0 and 1; `feature_adversary` wraps
the losses of a classifier by what they are at moved features.
"""

from imbsam_jax.losses._anomaly import deep_sad_loss, deviation_loss
from imbsam_jax.losses._feature_adversary import feature_adversary
from imbsam_jax.losses._loss import Loss, cross_entropy
from imbsam_jax.losses._priors import ldam, logit_adjusted, softmax_binary, vs
from imbsam_jax.losses._weights import class_balanced, class_balanced_weights, weighted
from imbsam_jax.losses._wrappers import deferred, focal, smoothed

__all__ = [
    "Loss",
    "class_balanced",
    "class_balanced_weights",
    "cross_entropy",
    "deep_sad_loss",
    "deferred",
    "deviation_loss",
    "feature_adversary",
    "focal",
    "ldam",
    "logit_adjusted",
    "smoothed",
    "softmax_binary",
    "vs",
    "weighted",
]
