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

The two losses of anomaly detection, `deviation_loss` and `deep_sad_loss`, take what their networks
give (a score, an embedding) and labels 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import checks, collectives
from imbsam_jax.rows import check_whole_batch, row_weights

__all__ = [
    "Loss",
    "class_balanced",
    "class_balanced_weights",
    "cross_entropy",
    "deep_sad_loss",
    "deferred",
    "deviation_loss",
    "focal",
    "ldam",
    "logit_adjusted",
    "smoothed",
    "softmax_binary",
    "vs",
    "weighted",
]


class Loss:
    """A table of losses, `loss_c(z)` for each label c, called as a per-example loss.

        loss(z, y) = factor * sum_c y_c loss_c(z)

    Args:
      per_class: `per_class(logits float[B, C], step) -> float[B, C]`, row i the loss of example i
        for each label it could have. The functions below make them.
      factor: None, or `factor(labels, step, mask) -> float[]`, one factor on every row that is
        constant in the logits: what turns a mean over rows into another average.

    Called as `loss(logits, labels, step=None, mask=None) -> float[B]`:
      logits: float[B, C]; computed in at least float32.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      step: number of updates made so far; required by `deferred`, ignored by the others.
      mask: bool[B], False for padding; needed only by `weighted(..., normalise="weights")`.

    >>> brier = Loss(lambda z, step: jnp.sum(z**2, -1, keepdims=True) - 2 * z + 1)
    >>> brier(jnp.array([[0.5, 0.5]]), jnp.array([1])).tolist()
    [0.5]
    """

    def __init__(
        self,
        per_class: Callable[[jax.Array, Any], jax.Array],
        factor: Callable[[jax.Array, Any, Any], Any] | None = None,
    ) -> None:
        self._per_class = per_class
        self.factor = factor

    def per_class(self, logits: jax.Array, step: Any = None) -> jax.Array:
        """float[B, C]: the loss of each example for each label, without the factor."""
        return self._per_class(_widened(logits), step)

    def __call__(
        self, logits: jax.Array, labels: jax.Array, step: Any = None, mask: Any = None
    ) -> jax.Array:
        labels = checks.as_labels(labels)
        if mask is not None:
            mask = checks.as_mask(mask, labels.shape[:1])
        losses = _mean_over_label(self.per_class(logits, step), labels)
        if self.factor is None:
            return losses
        _check_whole_batch()
        return losses * jnp.asarray(self.factor(labels, step, mask), losses.dtype)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, step: Any = None, mask: Any = None
) -> jax.Array:
    """Softmax cross-entropy, `-log softmax(z)_y`, or `-sum_c y_c log softmax(z)_c`.

    Args:
      logits: float[B, C]; computed in at least float32.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      step, mask: ignored; every loss of this module can be called alike.

    Returns:
      float[B].

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
    1.3863
    """
    del step
    labels = checks.as_labels(labels)
    if mask is not None:
        checks.as_mask(mask, labels.shape[:1])
    return _mean_over_label(-jax.nn.log_softmax(_widened(logits)), labels)


def class_balanced_weights(class_counts: ArrayLike, beta: float = 0.9999) -> NDArray[np.float64]:
    """Weights by the effective number of examples, normalised to sum C.

        w_c = C v_c / sum_j v_j,   v_c = (1 - beta) / (1 - beta^n_c)

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1); 0 weights all classes alike, towards 1 it is inverse frequency.

    Returns:
      float64[C], their mean 1 over classes; over naturally sampled rows it is less.

    Raises:
      ValueError: counts that are not positive, a beta outside [0, 1).

    Source: Cui et al., CVPR 2019.

    >>> class_balanced_weights([50, 5]).round(3).tolist()
    [0.182, 1.818]
    """
    counts = checks.counts(class_counts)
    beta = checks.number("beta", beta, least=0, below=1, concrete=True)
    # 1 - beta^n without cancellation, which matters for the rarest classes.
    effective = -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones(counts.shape)
    weights = 1.0 / effective
    return np.asarray(weights * (counts.size / weights.sum()))


def weighted(
    loss: Callable[..., jax.Array],
    class_weights: ArrayLike,
    *,
    normalise: Literal["batch", "weights"] = "batch",
    axis_name: Any = None,
) -> Loss:
    """A loss with one weight per class: its mean over the batch is one of two averages.

        "batch":    (1/B) sum_i w[y_i] loss_i
        "weights":  sum_i w[y_i] loss_i / sum_i w[y_i]

    Under natural sampling of a long tail the first is the smaller by the mean weight of a row: by
    0.20 with class-balanced weights on CIFAR100-LT of imbalance factor 100.

    Args:
      loss: a loss of this module.
      class_weights: float[C], finite and at least 0.
      normalise: "batch" divides by the batch size: rows stay independent. "weights" divides by
        the sum of the weights of the real rows, as the weight of a PyTorch loss with its mean
        reduction does: pass the mask, too, where rows are padding.
      axis_name: the device axis over which "weights" sums, inside pmap or shard_map; None sums
        over this device's rows (under plain jit these are all rows).

    "weights" is of a whole batch. A pass of `value_and_grad` over a part of it (micro_batches, own
    rows, split_norm) refuses such a loss; there take the factor beforehand and hand it on:

        factor = loss.factor(labels, step, mask)
        plain = Loss(loss.per_class)
        losses_fn = lambda params, x, y, factor: (plain(model(params, x), y) * factor, None)
        f = value_and_grad(losses_fn, rule, passes=passes.whole(4, (True, True, False)))

    Raises:
      ValueError: weights that are negative or not finite, an unknown normalisation; a call with
        "weights" in a pass over a part of the batch.

    Source: "batch" is Cui et al., CVPR 2019, and the Focal-SAM release; "weights" is the LDAM,
    VS-loss and Saddle-LongTail releases. For soft labels a row weighs `sum_c y_c w_c`.

    >>> logits, labels = jnp.zeros((2, 2)), jnp.array([0, 1])
    >>> round(float(weighted(cross_entropy, [0.5, 1.0])(logits, labels).mean()), 3)
    0.52
    >>> loss = weighted(cross_entropy, [0.5, 1.0], normalise="weights")
    >>> round(float(loss(logits, labels).mean()), 3)
    0.693
    """
    inner = _as_loss(loss)
    if inner.factor is not None:
        raise ValueError(
            "the loss is already divided by its weights: multiply the two tables of weights and "
            "call weighted once"
        )
    if normalise not in ("batch", "weights"):
        raise ValueError(f"normalise must be 'batch' or 'weights', got {normalise!r}")
    table = checks.weights("class_weights", class_weights)
    some_zero = not checks.is_concrete(table) or bool(np.any(np.asarray(table) == 0))

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        row, plain = _row(table, logits), inner.per_class(logits, step)
        # No part of the loss, also where the loss is infinite.
        return jnp.where(row == 0, 0, row * plain) if some_zero else row * plain

    def factor(labels: jax.Array, step: Any, mask: Any) -> jax.Array:
        del step
        _check_whole_batch()
        total = row_weights(table, labels, mask, jnp.result_type(float)).mean()
        real = jnp.ones(()) if mask is None else jnp.mean(mask, dtype=total.dtype)
        total, real = collectives.mean((total, real.astype(total.dtype)), axis_name)
        return real / jnp.where(total == 0, 1, total)

    return Loss(per_class, factor if normalise == "weights" else None)


def class_balanced(
    class_counts: ArrayLike,
    beta: float = 0.9999,
    *,
    loss: Callable[..., jax.Array] = cross_entropy,
    normalise: Literal["batch", "weights"] = "batch",
    axis_name: Any = None,
) -> Loss:
    """A loss weighted by `class_balanced_weights`: `weighted(loss, weights, normalise=...)`.

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1).
      loss: the loss that is weighted.
      normalise, axis_name: see `weighted`.

    Source: Cui et al., CVPR 2019.

    >>> loss = class_balanced([90, 10], beta=0.99)
    >>> [round(float(x), 3) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.192, 1.194]
    """
    weights = class_balanced_weights(class_counts, beta)
    return weighted(loss, weights, normalise=normalise, axis_name=axis_name)


def focal(gamma: float = 1.0, *, loss: Callable[..., jax.Array] = cross_entropy) -> Loss:
    """Focal loss: easy examples count less.

        loss_c = (1 - exp(-l_c))^gamma l_c        (for cross-entropy exp(-l_c) is softmax(z)_c)

    Args:
      gamma: finite and at least 0; 0 is the loss itself.
      loss: the loss l that is modulated.

    Raises:
      ValueError: a bad gamma; a loss normalised by its weights.

    Source: Lin et al., ICCV 2017 (gamma 2); the LDAM and Saddle-LongTail releases use 1. Those
    put class weights inside the exponential, `p = exp(-w_y l)`: that is
    `focal(loss=weighted(cross_entropy, w))`, while the usual `w_y (1 - p)^gamma l` is
    `weighted(focal(), w)`.

    >>> round(float(focal(2.0)(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
    0.1733
    """
    gamma = checks.number("gamma", gamma, least=0)
    inner = _as_loss(loss)
    if inner.factor is not None:
        raise ValueError("normalise after modulating: weighted(focal(gamma), weights, ...)")

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        plain = inner.per_class(logits, step)
        if checks.is_concrete(gamma) and gamma == 0:
            return plain
        # Below gamma 1 the power has no finite slope at 0: such an entry is 0, flat. At infinity
        # the factor is 1, and its slope 0.
        certain, hopeless = plain <= 0, plain == jnp.inf
        safe = jnp.where(certain | hopeless, 1, plain)
        modulated = (-jnp.expm1(-safe)) ** _like(gamma, safe) * safe
        return jnp.where(certain, 0, jnp.where(hopeless, plain, modulated))

    return Loss(per_class)


def ldam(
    class_counts: ArrayLike,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    scale_logits: bool = True,
) -> Loss:
    """Label-distribution-aware margins: rare classes must win by more.

        loss_c = CE(scale * (z - m_c onehot_c), c),   m_c = max_margin (n_c / min_j n_j)^(-1/4)

    Args:
      class_counts: int[C], each at least 1.
      max_margin: margin of the rarest class, finite and at least 0, in units of a cosine.
      scale: finite and positive.
      scale_logits: False leaves the logits unscaled and subtracts `scale * m_c`, which is what
        the SSE-SAM release has, on a plain linear classifier.

    The logits are cosines: use `classifiers.normalised_linear`, which has no bias.

    Raises:
      ValueError: counts that are not positive, a bad margin or scale.

    Source: Cao et al., NeurIPS 2019 (max_margin 0.5 on CIFAR, 0.3 on larger sets).

    >>> loss = ldam([16, 1], max_margin=0.5, scale=2.0)
    >>> [round(float(x), 3) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.974, 1.313]
    """
    counts = checks.counts(class_counts)
    max_margin = checks.number("max_margin", max_margin, least=0)
    scale = checks.number("scale", scale, above=0, wanted="positive and finite")
    margins = scale * (max_margin * (counts / counts.min()) ** -0.25)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        logits = logits * _like(scale, logits) if scale_logits else logits
        return jax.nn.softplus(_of_others(logits) - (logits - _row(margins, logits)))

    return Loss(per_class)


def logit_adjusted(class_counts: ArrayLike, *, tau: float = 1.0) -> Loss:
    """Logit-adjusted cross-entropy, consistent for the balanced error at tau 1.

        loss_c = CE(z + tau log pi, c),   pi_c = n_c / N

    Args:
      class_counts: int[C], each at least 1.
      tau: finite and at least 0; 0 is cross-entropy. "Balanced softmax" is tau 1.

    Predictions are the plain argmax of z. To adjust afterwards a model trained with
    cross-entropy instead, use `classifiers.adjust_logits`.

    Source: Menon et al., ICLR 2021. Releases add 1e-9 or 1e-12 inside the logarithm; counts are at
    least 1 here, so nothing is added. The SSE-SAM release's "LA" has tau 0.75.

    >>> loss = logit_adjusted([3, 1])
    >>> [round(float(x), 4) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.2877, 1.3863]
    """
    return vs(class_counts, gamma=0.0, tau=tau)


def vs(class_counts: ArrayLike, *, gamma: float = 0.3, tau: float = 1.0) -> Loss:
    """Vector-scaling loss: logits are both scaled and shifted by class.

        loss_c = CE(z / D + tau log pi, c),   D_c = (max_j n_j / n_c)^gamma,  pi_c = n_c / N

    Args:
      class_counts: int[C], each at least 1.
      gamma: exponent of the scaling, finite and at least 0; 0 is `logit_adjusted`.
      tau: factor of the shift, finite and at least 0.

    Source: Kini et al., NeurIPS 2021 (0.3 and 1.0); the SSE-SAM release has 0.05 and 0.75.

    >>> loss = vs([16, 1], gamma=0.5, tau=0.0)
    >>> round(float(loss(jnp.array([[0.0, 4.0]]), jnp.array([1]))[0]), 4)
    0.3133
    """
    counts = checks.counts(class_counts)
    gamma = checks.number("gamma", gamma, least=0)
    tau = checks.number("tau", tau, least=0)
    divisors = (counts.max() / counts) ** gamma
    shifts = tau * np.log(counts / counts.sum())

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        logits = logits / _row(divisors, logits) + _row(shifts, logits)
        return -jax.nn.log_softmax(logits)

    return Loss(per_class)


def softmax_binary(class_counts: ArrayLike, *, beta: float = 0.9999) -> Loss:
    """Class-balanced binary cross-entropy on softmax outputs: weight balancing's second stage.

        loss_c = (w_c / C) [-log p_c - sum_{j != c} log(1 - p_j)],   p = softmax(z)

    with `w = class_balanced_weights(class_counts, beta)` and logarithms clamped at -100. The mean
    over C makes gradients about C times smaller than those of cross-entropy: published learning
    rates include that.

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1).

    Source: the release of Alshammari et al., CVPR 2022. Logarithms are taken without rounding p
    first: where p rounds to 1 in float32 the release's log(1 - p) jumps from about -17 to -100.

    >>> round(float(softmax_binary([1, 1])(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
    0.6931
    """
    weights = class_balanced_weights(class_counts, beta)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        margin = logits - _of_others(logits)
        log_p = jnp.maximum(-jax.nn.softplus(-margin), -100)
        log_not_p = jnp.maximum(-jax.nn.softplus(margin), -100)
        total = log_p + _sum_of_others(log_not_p, _is_largest(logits))
        return -(_row(weights, logits) / logits.shape[-1]) * total

    return Loss(per_class)


def smoothed(loss: Callable[..., jax.Array], amount: float) -> Loss:
    """Label smoothing of any loss: part of the label is spread over all classes.

        loss'_c = (1 - amount) loss_c + (amount / C) sum_j loss_j

    Args:
      loss: a loss of this module; a table of weights in it weighs each term by its own class.
      amount: in [0, 1]; 0 is the loss itself.

    Source: Szegedy et al., CVPR 2016; the convention is that of PyTorch's `label_smoothing`.

    >>> loss = smoothed(cross_entropy, 0.2)
    >>> round(float(loss(jnp.array([[0.0, 2.0]]), jnp.array([1]))[0]), 4)
    0.3269
    """
    inner = _as_loss(loss)
    amount = checks.number("amount", amount, least=0, most=1)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        plain = inner.per_class(logits, step)
        mean = jnp.broadcast_to(plain.mean(axis=-1, keepdims=True), plain.shape)
        # Nothing of an infinite loss is nothing, not NaN.
        if checks.is_concrete(amount) and amount in (0, 1):
            return plain if amount == 0 else mean
        share = _like(amount, plain)
        if checks.is_concrete(amount):
            return (1 - share) * plain + share * mean
        part = jnp.where(share == 1, 0, (1 - share) * plain)
        return part + jnp.where(share == 0, 0, share * mean)

    return Loss(per_class, inner.factor)


def deferred(
    first: Callable[..., jax.Array], second: Callable[..., jax.Array], *, switch_step: Any
) -> Loss:
    """One loss before `switch_step`, another from it on: deferred re-weighting (DRW) and its like.

    Args:
      first: loss for step < switch_step.
      second: loss for step >= switch_step.
      switch_step: first step of the second loss, at least 0: epochs times steps per epoch.

    Calls need `step`. A Python int chooses while tracing, a traced step under `lax.cond`.

    Raises:
      ValueError: a negative switch_step; a call without step.

    Source: Cao et al., NeurIPS 2019: LDAM, from epoch 160 of 200 (60 of 90) on weighted by
    `class_balanced_weights`. There the mean is over the weights: `normalise="weights"`.

    >>> plain = ldam([90, 10])
    >>> drw = deferred(plain, weighted(plain, [0.2, 1.8]), switch_step=100)
    >>> logits, labels = jnp.zeros((1, 2)), jnp.array([1])
    >>> [round(float(drw(logits, labels, step)[0]), 3) for step in (99, 100)]
    [15.0, 27.0]
    """
    checks.steps("switch_step", switch_step)
    before, after = _as_loss(first), _as_loss(second)

    def is_later(step: Any) -> Any:
        if step is None:
            raise ValueError(
                "this loss depends on the step: call loss(logits, labels, step), with the number "
                "of updates made so far"
            )
        return step >= switch_step

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        later = is_later(step)
        if isinstance(later, bool | np.bool_):
            return (after if later else before).per_class(logits, step)
        return lax.cond(
            later,
            lambda z: after.per_class(z, step),
            lambda z: before.per_class(z, step),
            logits,
        )

    def factor(labels: jax.Array, step: Any, mask: Any) -> jax.Array:
        factors = [
            1.0 if loss.factor is None else loss.factor(labels, step, mask)
            for loss in (before, after)
        ]
        return jnp.where(is_later(step), factors[1], factors[0])

    plain = before.factor is None and after.factor is None
    return Loss(per_class, None if plain else factor)


def deviation_loss(
    scores: jax.Array,
    labels: jax.Array,
    *,
    reference_mean: Any = 0.0,
    reference_std: Any = 1.0,
    margin: float = 5.0,
) -> jax.Array:
    """Deviation loss of DevNet: normal scores near a reference, anomalies far above it.

        loss_i = (1 - y_i) |dev_i| + y_i max(0, margin - dev_i)
        dev_i = (score_i - reference_mean) / reference_std

    Args:
      scores: float[B], larger is more anomalous; computed in at least float32.
      labels: int[B], 1 for a labelled anomaly and 0 for every other example; anything else
        gives NaN.
      reference_mean: mean of the reference scores, usually of draws from a standard normal.
      reference_std: their standard deviation, positive.
      margin: how many standard deviations above the reference an anomaly should score.

    Returns:
      float[B].

    Raises:
      ValueError: scores and labels that are not vectors of one length, a concrete reference_std
        or margin that is not positive.

    >>> deviation_loss(jnp.array([-0.5, 2.0, 7.0]), jnp.array([0, 1, 1])).tolist()
    [0.5, 3.0, 0.0]

    Source: Pang et al., KDD 2019. The margin is theirs, and ADBench's.
    """
    scores, labels = checks.real("scores", scores), checks.as_marks(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be vectors of one length, got shapes {scores.shape} and "
            f"{labels.shape}: a network with one output gives [B, 1], so pass output[:, 0]"
        )
    reference_mean = checks.number("reference_mean", reference_mean)
    reference_std = checks.number("reference_std", reference_std, above=0)
    margin = checks.number("margin", margin, above=0)
    scores = scores.astype(checks.at_least_float32(scores.dtype))
    mean, std = (_like(x, scores) for x in (reference_mean, reference_std))
    margin, deviation = _like(margin, scores), (scores - mean) / std
    return _by_anomaly(labels, jnp.abs(deviation), jax.nn.relu(margin - deviation))


def deep_sad_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    centre: jax.Array,
    *,
    eta: float = 1.0,
    eps: float = 1e-6,
) -> jax.Array:
    """DeepSAD loss: normal embeddings near a centre, labelled anomalies pushed away from it.

        loss_i = dist_i  where y_i = 0,   eta / (dist_i + eps)  where y_i = 1
        dist_i = || f_i - centre ||_2^2

    Args:
      embeddings: float[B, D]; computed in at least float32.
      labels: int[B], 1 for a labelled anomaly and 0 for every other example; anything else
        gives NaN. (The original marks anomalies -1 and has labelled normals too.)
      centre: float[D], fixed during training.
      eta: weight of labelled anomalies, positive.
      eps: added to the squared distance before it is inverted, positive.

    Returns:
      float[B].

    Raises:
      ValueError: shapes that do not fit, a concrete eta or eps that is not positive.

    >>> f = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> deep_sad_loss(f, jnp.array([0, 1]), jnp.zeros(2)).round(4).tolist()
    [1.0, 0.25]

    Source: Ruff et al., ICLR 2020, with eta and eps as in its code and ADBench's.
    """
    embeddings, centre = checks.real("embeddings", embeddings), checks.real("centre", centre)
    labels = checks.as_marks(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be float[B, D] with one label each, got shapes "
            f"{embeddings.shape} and {labels.shape}"
        )
    if centre.shape != embeddings.shape[1:]:
        raise ValueError(
            f"centre has shape {centre.shape}, but embeddings are {embeddings.shape[1]} wide"
        )
    eta, eps = checks.number("eta", eta, above=0), checks.number("eps", eps, above=0)
    embeddings = embeddings.astype(checks.at_least_float32(embeddings.dtype))
    # A centre in float64 makes the distance float64, too, as JAX's own promotion would.
    centre = centre.astype(max(checks.at_least_float32(centre.dtype), embeddings.dtype))
    distance = jnp.square(embeddings.astype(centre.dtype) - centre[None, :]).sum(axis=-1)
    eta, eps = _like(eta, distance), _like(eps, distance)
    return _by_anomaly(labels, distance, eta / (distance + eps))


def _by_anomaly(labels: jax.Array, normal: jax.Array, anomaly: jax.Array) -> jax.Array:
    # No NaN on the way to a result without one, for those who debug with jax_debug_nans.
    values = jnp.where(labels == 1, anomaly, normal)
    return jnp.where((labels == 0) | (labels == 1), values, jnp.nan)


def _as_loss(loss: Callable[..., jax.Array]) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if loss is cross_entropy:
        return Loss(lambda logits, step: -jax.nn.log_softmax(logits))
    raise TypeError(
        "this needs the loss of every label, not only of the given one: pass a loss made by "
        f"imbsam_jax.losses, or Loss(per_class); got {getattr(loss, '__name__', loss)!r}"
    )


def _check_whole_batch() -> None:
    check_whole_batch(
        "this loss is divided by a sum over the rows of the batch (normalise='weights')",
        "take factor = loss.factor(labels, step, mask) of the whole batch before the passes, give "
        "it to losses_fn as an arg without the batch axis (batched=), and return "
        "Loss(loss.per_class)(logits, labels, step) * factor",
    )


def _widened(logits: jax.Array) -> jax.Array:
    logits = checks.real("logits", logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must be float[B, C], got shape {list(logits.shape)}")
    return logits.astype(checks.at_least_float32(logits.dtype))


def _like(number: Any, array: jax.Array) -> Any:
    """A traced number in the type of the array; Python's adapt themselves."""
    return number if checks.is_concrete(number) else number.astype(array.dtype)


def _row(table: Any, logits: jax.Array) -> jax.Array:
    """A number per class as [1, C], in the dtype of the logits."""
    if table.shape[0] != logits.shape[1]:
        raise ValueError(
            f"the loss was made for {table.shape[0]} classes, the logits have {logits.shape[1]}"
        )
    return jnp.asarray(table, logits.dtype)[None, :]


def _mean_over_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """float[B]: values[i, labels[i]], or sum_c labels[i, c] values[i, c] for soft labels."""
    if labels.ndim == 2:
        if labels.shape != values.shape:
            raise ValueError(
                f"soft labels have shape {list(labels.shape)}, the logits {list(values.shape)}"
            )
        # A class that is no part of the label adds 0, also where its loss is infinite.
        values = jnp.where(labels == 0, 0, values)
        return (labels.astype(values.dtype) * values).sum(axis=-1)
    if labels.shape != values.shape[:1]:
        raise ValueError(f"there are {labels.shape[0]} labels for {values.shape[0]} rows of logits")
    return _pick(values, labels)


def _is_largest(logits: jax.Array) -> jax.Array:
    """bool[B, C], True at one largest entry of each row."""
    largest = jnp.argmax(logits, axis=-1)
    return jnp.arange(logits.shape[-1])[None, :] == largest[:, None]


def _of_others(logits: jax.Array) -> jax.Array:
    """float[B, C]: log sum_{j != c} exp(z_j) for each c, without cancellation."""
    largest = _is_largest(logits)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    others = jnp.where(largest, -jnp.inf, logits)
    # Of nothing but -inf the sum is taken where it has a slope, which is then left out.
    none = jnp.all(others == -jnp.inf, axis=-1, keepdims=True)
    rest = jax.nn.logsumexp(jnp.where(none, 0, others), axis=-1, keepdims=True)
    rest = jnp.where(none, -jnp.inf, rest)
    # Only the largest entry can be nearly all of the sum; it is left out, not subtracted.
    p = jnp.where(largest, 0, jnp.exp(logits - total))
    return jnp.where(largest, rest, total + jnp.log1p(-p))


def _sum_of_others(values: jax.Array, apart: jax.Array) -> jax.Array:
    """float[B, C]: sum_{j != c} values_j; the entry marked in `apart` is left out exactly."""
    rest = jnp.where(apart, 0, values).sum(axis=-1, keepdims=True)
    own = jnp.where(apart, values, 0).sum(axis=-1, keepdims=True)
    return jnp.where(apart, rest, rest - values + own)


def _pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[i, labels[i]], NaN for a label that is no class (also a negative one)."""
    return values.at[jnp.arange(labels.shape[0]), labels].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
