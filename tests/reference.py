"""Slow, obvious NumPy transcriptions of every update rule: what the library is tested against.

Nothing here imports JAX or the library. The model is small enough to differentiate by hand, every
number is float64, and each rule is written in the order in which its paper or its official release
writes it, on sub-batches picked out by boolean indexing. Repetition is wanted: two rules share no
more than the model, the arithmetic on dictionaries and the p = 2 step of SAM.

Each `*_gradient` function returns the descent gradient of one batch, to be given to
`sgd_momentum`; weight decay is added there, at the unperturbed parameters, or with
`weight_decay_in_ascent` here, inside the perturbed loss, and then not there. Losses are divided by
the true batch size B (ImbSAM's Alg. 1 has plain sums: the same up to the learning rate). A zero
ascent gradient perturbs nothing.

Labels are classes, int[B], or soft labels, float[B, C]. A row with a soft label belongs to a group
of classes with the part of its label that lies in them, so it may count in several groups.

Sources
  SAM             Foret et al., ICLR 2021; official JAX release google-research/sam
  ASAM            Kwon et al., ICML 2021; official release SamsungLabs/ASAM; also davda54/sam
  ImbSAM          Zhou et al., ICCV 2023; official release cool-xuan/Imbalanced_SAM
  CC-SAM          Zhou et al., CVPR 2023; official release zzpustc/CC-SAM
  SSE-SAM         AAAI 2025; official release Zemdalk/SSE-SAM
  Focal-SAM       Li et al., ICML 2025; official release scongl/Focal-SAM
  GSA             GKP+GSA, CVPR 2026, arXiv 2603.21217; paper and supplement, no code is public
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Params = dict[str, Array]
Batch = tuple[Array, NDArray]
Adaptive = Literal["asam", "davda54"] | None
Kind = Literal["mixed", "no_tail", "only_tail"]

WEIGHTS = ("w1", "w2")
BIASES = ("b1", "b2")
CLASSIFIER = ("w2", "b2")
ALL = ("w1", "b1", "w2", "b2")


# ------------------------------------------------------------------------------------- the model


def init_params(seed: int, features: int, hidden: int, classes: int) -> Params:
    """Random float64 parameters; the biases are not zero, so that every tensor matters."""
    rng = np.random.default_rng(seed)
    return {
        "w1": rng.normal(size=(features, hidden)) / np.sqrt(features),
        "b1": 0.1 * rng.normal(size=hidden),
        "w2": rng.normal(size=(hidden, classes)) / np.sqrt(hidden),
        "b2": 0.1 * rng.normal(size=classes),
    }


def soft_labels(y: NDArray, classes: int) -> Array:
    """Labels as float[B, C]: one-hot rows for int[B], unchanged if they are soft already."""
    if y.ndim == 2:
        return y.astype(np.float64)
    target = np.zeros((len(y), classes))
    target[np.arange(len(y)), y] = 1.0
    return target


def log_softmax(logits: Array) -> Array:
    """log p_c = z_c - log sum_j exp(z_j), row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def per_example_losses(params: Params, x: Array, y: NDArray) -> Array:
    """l_i = -sum_c y_ic log softmax(tanh(x_i w1 + b1) w2 + b2)_c, float64[B]."""
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return -(soft_labels(y, logits.shape[1]) * log_softmax(logits)).sum(axis=1)


def weighted_gradient(params: Params, x: Array, y: NDArray, weights: Array) -> Params:
    """grad_theta sum_i weights_i l_i(theta), by hand: dl/dz = p sum_c y_c - y."""
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    target = soft_labels(y, logits.shape[1])
    probabilities = np.exp(log_softmax(logits))
    d_logits = weights[:, None] * (probabilities * target.sum(axis=1, keepdims=True) - target)
    d_hidden = (d_logits @ params["w2"].T) * (1.0 - hidden**2)
    return {
        "w1": x.T @ d_hidden,
        "b1": d_hidden.sum(axis=0),
        "w2": hidden.T @ d_logits,
        "b2": d_logits.sum(axis=0),
    }


def shared_norm_weighted_gradient(
    params: Params, x: Array, y: NDArray, weights: Array, *, theta: Params, batch: Array
) -> Params:
    """`weighted_gradient` of a part's rows x in a network with batch normalisation, by hand.

    l_i = -sum_c y_ic log softmax(tanh(u_i + b1) w2 + b2)_c with u = batch normalisation of z = x w1
    (epsilon 1e-5). In value u_i = (z_i - M) / S by the statistics of the whole `batch` at `theta`;
    backwards, of the part's own z alone, by batch renormalisation (Ioffe 2017, Algorithm 1):
    dl/dz_i = r / s (q_i - mean_j q_j - n_i mean_j q_j n_j), q = dl/du, n = (z - m) / s, r = s / S.
    """
    of_all = batch @ theta["w1"]
    mean_all = of_all.sum(axis=0) / len(of_all)
    deviation_all = np.sqrt(((of_all - mean_all) ** 2).sum(axis=0) / len(of_all) + 1e-5)

    z = x @ params["w1"]
    hidden = np.tanh((z - mean_all) / deviation_all + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    target = soft_labels(y, logits.shape[1])
    probabilities = np.exp(log_softmax(logits))
    d_logits = weights[:, None] * (probabilities * target.sum(axis=1, keepdims=True) - target)
    d_normed = (d_logits @ params["w2"].T) * (1.0 - hidden**2)

    d_z = np.zeros_like(z)
    if len(z) > 0:
        mean = z.sum(axis=0) / len(z)
        deviation = np.sqrt(((z - mean) ** 2).sum(axis=0) / len(z) + 1e-5)
        normed = (z - mean) / deviation
        r = deviation / deviation_all
        centred = d_normed - d_normed.sum(axis=0) / len(z)
        d_z = r / deviation * (centred - normed * (d_normed * normed).sum(axis=0) / len(z))
    return {
        "w1": x.T @ d_z,
        "b1": d_normed.sum(axis=0),
        "w2": hidden.T @ d_logits,
        "b2": d_logits.sum(axis=0),
    }


# ---------------------------------------------------------------------- arithmetic on parameters


def zeros(params: Params) -> Params:
    """0, in the shapes of params."""
    return {name: np.zeros_like(value) for name, value in params.items()}


def add(first: Params, second: Params) -> Params:
    """first + second; a tensor that second lacks stays as it is."""
    return {name: value + second.get(name, 0.0) for name, value in first.items()}


def scale(factor: float, tensors: Params) -> Params:
    """factor * tensors."""
    return {name: factor * value for name, value in tensors.items()}


def norm(tensors: Params) -> float:
    """||.||_2 over all tensors jointly."""
    return float(np.sqrt(sum((value**2).sum() for value in tensors.values())))


def part_in(y: NDArray, classes: NDArray[np.bool_]) -> Array:
    """Part of each row's label in the marked classes S: 1[y_i in S], or sum_{c in S} y_ic."""
    if y.ndim == 1:
        return np.where(classes[y], 1.0, 0.0)
    return y[:, classes].sum(axis=1)


# ------------------------------------------------------------------------------------ the ascent


def l2_perturbation(gradient: Params, rho: float) -> Params:
    """e = rho g / ||g||_2 (ImbSAM paper Eq. 9)."""
    length = norm(gradient)
    if length == 0.0:
        return zeros(gradient)
    return scale(rho / length, gradient)


def p_norm_perturbation(gradient: Params, rho: float, p: float) -> Params:
    """e = rho sign(g) |g|^(q-1) / (||g||_q^q)^(1/p), 1/p + 1/q = 1, 1 < p <= inf (Eq. 7)."""
    if not p > 1.0:
        raise ValueError(f"p = {p}: the conjugate exponent q = p / (p - 1) needs p > 1")
    q = 1.0 if np.isinf(p) else p / (p - 1.0)
    total = sum((np.abs(value) ** q).sum() for value in gradient.values())
    if total == 0.0:
        return zeros(gradient)
    return {
        name: rho * np.sign(value) * np.abs(value) ** (q - 1.0) / total ** (1.0 / p)
        for name, value in gradient.items()
    }


def adaptive_scales(params: Params, adaptive: Adaptive, eta_a: float) -> Params:
    """T: |theta| + eta_a on weights, 1 on biases (ASAM release); |theta| on all (davda54/sam)."""
    if adaptive == "asam":
        scales = {name: np.abs(params[name]) + eta_a for name in WEIGHTS}
        scales.update({name: np.ones_like(params[name]) for name in BIASES})
        return scales
    if adaptive == "davda54":
        return {name: np.abs(value) for name, value in params.items()}
    raise ValueError(f"adaptive = {adaptive!r}: expected 'asam', 'davda54' or None")


def adaptive_perturbation(
    params: Params, gradient: Params, rho: float, p: float, adaptive: Adaptive, eta_a: float
) -> Params:
    """e = rho T^2 g / ||T g||_2 (ASAM, p = 2); for any p, T times the p-norm step of T g."""
    scales = adaptive_scales(params, adaptive, eta_a)
    scaled = {name: scales[name] * value for name, value in gradient.items()}
    if p != 2.0:
        step = p_norm_perturbation(scaled, rho, p)
        return {name: scales[name] * value for name, value in step.items()}
    length = norm(scaled)
    if length == 0.0:
        return zeros(gradient)
    return {name: rho * scales[name] ** 2 * value / length for name, value in gradient.items()}


def perturbation(
    params: Params, gradient: Params, rho: float, p: float, adaptive: Adaptive, eta_a: float
) -> Params:
    """The ascent step asked for: Eq. 9 by default, Eq. 7 for another p, ASAM if adaptive."""
    if adaptive is not None:
        return adaptive_perturbation(params, gradient, rho, p, adaptive, eta_a)
    if p != 2.0:
        return p_norm_perturbation(gradient, rho, p)
    return l2_perturbation(gradient, rho)


# ----------------------------------------------------------------------------------- the methods


def sgd_gradient(params: Params, x: Array, y: NDArray) -> Params:
    """g = grad (1/B) sum_i l_i(theta)."""
    return weighted_gradient(params, x, y, np.ones(len(x)) / len(x))


def sam_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    rho: float,
    p: float = 2.0,
    adaptive: Adaptive = None,
    eta_a: float = 0.01,
    weight_decay_in_ascent: float = 0.0,
) -> Params:
    """g = grad L(theta + e), e = rho grad L(theta) / ||grad L(theta)||_2 (Eqs. 8, 9).

    With `weight_decay_in_ascent`, L contains 0.5 wd ||theta||_2^2 in both passes, as in the
    official JAX release of SAM; `sgd_momentum` must then add no weight decay of its own.
    """
    mean = np.ones(len(x)) / len(x)
    ascent = weighted_gradient(params, x, y, mean)
    ascent = add(ascent, scale(weight_decay_in_ascent, params))
    e = perturbation(params, ascent, rho, p, adaptive, eta_a)
    perturbed = add(params, e)
    descent = weighted_gradient(perturbed, x, y, mean)
    return add(descent, scale(weight_decay_in_ascent, perturbed))


def sam_tail_weight_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    rho: float,
    eta: float,
    tail_weight: float,
    strict: bool = False,
) -> Params:
    """SAM on (1/B) [sum_head l_i + r sum_tail l_i], the control of the ImbSAM paper's Table 3."""
    batch_size = len(x)
    counts = np.asarray(class_counts)
    of_tail = counts < eta if strict else counts <= eta
    head_part = part_in(y, ~of_tail)
    tail_part = part_in(y, of_tail)
    head = head_part > 0.0
    tail = tail_part > 0.0

    def gradient_at(point: Params) -> Params:
        of_head = weighted_gradient(point, x[head], y[head], head_part[head] / batch_size)
        of_tail = weighted_gradient(point, x[tail], y[tail], tail_part[tail] / batch_size)
        return add(of_head, scale(tail_weight, of_tail))

    e = l2_perturbation(gradient_at(params), rho)
    return gradient_at(add(params, e))


def imbsam_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    rho: float,
    eta: float,
    tail_scale: float = 1.0,
    strict: bool = False,
    group_mean: bool = False,
    p: float = 2.0,
    adaptive: Adaptive = None,
    eta_a: float = 0.01,
    weight_decay_in_ascent: float = 0.0,
) -> Params:
    """g = grad L_tail(theta + e_tail) + grad L_head(theta) (ImbSAM paper Eqs. 15, 18, 19, Alg. 1).

    The paper's tail is n_c <= eta; the official release has n_c < eta (`strict`) and, since
    September 2023, twice the tail loss (`tail_scale=2`). The "imbsam" mode of the official SSE-SAM
    release takes the mean over the head rows and the mean over the tail rows (`group_mean`).
    With `weight_decay_in_ascent`, L_tail contains 0.5 wd ||theta||_2^2 in both passes; a mean over
    no row is no loss, and then nothing moves.
    """
    batch_size = len(x)

    # Alg. 1 line 4, Eq. 15: divide the batch with eta.
    counts = np.asarray(class_counts)
    tail_classes = counts < eta if strict else counts <= eta
    head_part = part_in(y, ~tail_classes)
    tail_part = part_in(y, tail_classes)
    head = head_part > 0.0
    tail = tail_part > 0.0
    x_head, y_head, head_weights = x[head], y[head], head_part[head]
    x_tail, y_tail, tail_weights = x[tail], y[tail], tail_part[tail]

    # Lines 5 and 6: the two losses.
    if group_mean:
        if len(x_head) > 0:
            head_weights = head_weights / head_weights.sum()
        if len(x_tail) > 0:
            tail_weights = tail_scale * tail_weights / tail_weights.sum()
    else:
        head_weights = head_weights / batch_size
        tail_weights = tail_scale * tail_weights / batch_size

    # Lines 7 and 8: their gradients at theta.
    head_gradient = weighted_gradient(params, x_head, y_head, head_weights)
    tail_gradient = weighted_gradient(params, x_tail, y_tail, tail_weights)
    if len(x_tail) > 0 or not group_mean:
        tail_gradient = add(tail_gradient, scale(weight_decay_in_ascent, params))

    # Line 9, Eq. 19: the perturbation is the tail's alone.
    e_tail = perturbation(params, tail_gradient, rho, p, adaptive, eta_a)

    # Line 10, Eq. 18.
    perturbed = add(params, e_tail)
    perturbed_tail_gradient = weighted_gradient(perturbed, x_tail, y_tail, tail_weights)
    perturbed_tail_gradient = add(perturbed_tail_gradient, scale(weight_decay_in_ascent, perturbed))
    return add(perturbed_tail_gradient, head_gradient)


def focal_sam_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    rho: float,
    gamma: float,
    strength: float,
) -> Params:
    """g = grad [L - s L^gamma](theta) + s grad L^gamma(theta + e) (Focal-SAM paper).

    L^gamma = sum_c (1 - n_c/N)^gamma L^c, where L^c is the sum over the rows of class c divided by
    B; s is `strength`, and e is the l2 step along s grad L^gamma(theta). The official release
    (train_step.py) does the same with means of weighted losses.
    """
    batch_size = len(x)
    counts = np.asarray(class_counts, dtype=np.float64)
    total = counts.sum()

    focal_loss_weights = np.zeros(batch_size)
    for c in range(len(counts)):
        class_part = part_in(y, np.arange(len(counts)) == c)
        focal_loss_weights += class_part * strength * (1.0 - counts[c] / total) ** gamma

    plain = weighted_gradient(params, x, y, (1.0 - focal_loss_weights) / batch_size)
    ascent = weighted_gradient(params, x, y, focal_loss_weights / batch_size)
    e = l2_perturbation(ascent, rho)
    sharp = weighted_gradient(add(params, e), x, y, focal_loss_weights / batch_size)
    return add(plain, sharp)


def sse_sam_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    head_rho: float,
    tail_rho: float,
    eta: float,
    switch_step: int,
    step: int,
    weight_decay_in_ascent: float = 0.0,
) -> Params:
    """g = grad L_head(theta + e_head) + grad L_tail(theta + e_tail); e_head = 0 after the switch.

    The switch is the first step not below `switch_step`; the second stage is ImbSAM. Each
    perturbation is normalised by its own group's gradient (SSE-SAM; official release,
    ssesam.py: head up, head gradient, back, tail up, tail gradient, back). With
    `weight_decay_in_ascent`, each perturbed loss contains its half of 0.5 wd ||theta||_2^2 in both
    passes; after the switch the tail's has all of it.
    """
    batch_size = len(x)
    of_head = weight_decay_in_ascent / 2.0 if step < switch_step else 0.0
    of_tail = weight_decay_in_ascent - of_head
    counts = np.asarray(class_counts)
    head_part = part_in(y, counts > eta)
    tail_part = part_in(y, counts <= eta)
    head = head_part > 0.0
    tail = tail_part > 0.0
    head_rho_now = head_rho if step < switch_step else 0.0

    head_ascent = weighted_gradient(params, x[head], y[head], head_part[head] / batch_size)
    head_ascent = add(head_ascent, scale(of_head, params))
    at_head = add(params, l2_perturbation(head_ascent, head_rho_now))
    accumulated = weighted_gradient(at_head, x[head], y[head], head_part[head] / batch_size)
    accumulated = add(accumulated, scale(of_head, at_head))

    tail_ascent = weighted_gradient(params, x[tail], y[tail], tail_part[tail] / batch_size)
    tail_ascent = add(tail_ascent, scale(of_tail, params))
    at_tail = add(params, l2_perturbation(tail_ascent, tail_rho))
    tail = weighted_gradient(at_tail, x[tail], y[tail], tail_part[tail] / batch_size)
    return add(accumulated, add(tail, scale(of_tail, at_tail)))


def cc_sam_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    perturb: Literal["classifier", "all"],
    noise_ratio: float = 1.0,
) -> Params:
    """g = sum_c grad L^c(theta + e_c), e_c = sqrt(k) rho_c grad L^c / ||grad L^c|| (CC-SAM paper).

    rho_c = sqrt(||w|| / (2 ||grad L^c(w)||)) k^(-1/4) (n_c - 1)^(-1/4), where w are the k perturbed
    parameters, both norms are joint over w, and L^c is the sum over the batch's rows of class c
    divided by B. The descent gradient is that of all parameters. A class of one example has no
    finite radius and is refused. `noise_ratio` multiplies e_c; the paper has none.
    """
    batch_size = len(x)
    counts = np.asarray(class_counts, dtype=np.float64)
    names = {"classifier": CLASSIFIER, "all": ALL}[perturb]
    w = {name: params[name] for name in names}
    k = sum(value.size for value in w.values())

    gradient = zeros(params)
    for c in range(len(counts)):
        class_part = part_in(y, np.arange(len(counts)) == c)
        rows = class_part > 0.0
        if not rows.any():
            continue
        if counts[c] < 2:
            raise ValueError(f"class {c} has {counts[c]:g} examples: CC-SAM needs at least 2")
        x_c, y_c, weights = x[rows], y[rows], class_part[rows] / batch_size

        gradient_c = weighted_gradient(params, x_c, y_c, weights)
        gradient_c = {name: gradient_c[name] for name in names}
        length = norm(gradient_c)
        if length == 0.0:
            e_c = zeros(w)
        else:
            rho_c = np.sqrt(norm(w) / (2.0 * length)) * k ** (-0.25) * (counts[c] - 1.0) ** (-0.25)
            e_c = scale(noise_ratio * np.sqrt(k) * rho_c / length, gradient_c)

        gradient = add(gradient, weighted_gradient(add(params, e_c), x_c, y_c, weights))
    return gradient


def cc_sam_release_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    noise_ratio: float,
    flat_ratio: float,
    perturb: Literal["classifier", "all"] = "classifier",
) -> Params:
    """g = (1 - phi) grad mean_i l_i(theta) + phi grad mean_i l_i(theta + e_{y_i}) (CC-SAM release).

    Only w2 and b2 are perturbed, but features are differentiated through the perturbed classifier
    (perturb="all" does the same with every tensor; the release cannot).
    For class c and each tensor t, with g_ct the gradient of the MEAN loss over the class's rows,
    e_ct = sqrt(k) rho_ct g_ct / ||g_ct||, where
    rho_ct = noise_ratio sqrt(||w||) / sqrt(||g_ct||) / sqrt(2) / (n_c - 1)^(1/4) / k^(1/4), w is
    weight and bias jointly and k their size. Stage 1 without mixup and without the release's
    1e-12 in ||w||; phi is `flat_ratio`.
    """
    if y.ndim != 1:
        raise ValueError("the CC-SAM release groups rows by a single class: y must be int[B]")
    batch_size = len(x)
    counts = np.asarray(class_counts, dtype=np.float64)
    names = {"classifier": CLASSIFIER, "all": ALL}[perturb]
    w_norm = norm({name: params[name] for name in names})
    k = sum(params[name].size for name in names)

    perturbed_gradient = zeros(params)
    for c in np.unique(y):
        if counts[c] < 2:
            raise ValueError(f"class {c} has {counts[c]:g} examples: CC-SAM needs at least 2")
        x_c, y_c = x[y == c], y[y == c]
        class_mean = weighted_gradient(params, x_c, y_c, np.ones(len(x_c)) / len(x_c))

        e_c = {}
        for name in names:
            g = class_mean[name]
            g_norm = np.sqrt((g**2).sum())
            if g_norm == 0.0:
                e_c[name] = np.zeros_like(g)
                continue
            rho = noise_ratio * np.sqrt(w_norm) / np.sqrt(g_norm) / np.sqrt(2.0)
            rho = rho / (counts[c] - 1.0) ** 0.25 / k**0.25
            e_c[name] = rho * np.sqrt(k) * g / g_norm

        perturbed_gradient = add(
            perturbed_gradient,
            weighted_gradient(add(params, e_c), x_c, y_c, np.ones(len(x_c)) / batch_size),
        )

    clean_gradient = weighted_gradient(params, x, y, np.ones(batch_size) / batch_size)
    return add(scale(1.0 - flat_ratio, clean_gradient), scale(flat_ratio, perturbed_gradient))


def gsa_gradient(
    params: Params,
    x: Array,
    y: NDArray,
    *,
    class_counts: ArrayLike,
    groups: ArrayLike,
    z: float,
    direction: Literal["orthogonal", "plain", "projection"] = "orthogonal",
    perturb: Literal["classifier", "all"] = "all",
) -> Params:
    """g = sum_g grad L_g(theta + e_g), e_g = Z sqrt(d) rho_g h_g / ||h_g|| (GSA, Eqs. 11 to 15).

    L_g is the sum over the batch's rows of group g divided by B, d_g its gradient and
    d_all = sum_g d_g. "orthogonal" is the method: h_g = d_g - <d_g, d_all> / <d_all, d_all> d_all.
    Its controls (Table 5): h_g = d_g ("plain"), and what h_g leaves out ("projection").
    rho_g = sqrt(||theta|| / (2 ||h_g||)) d^(-1/4) (|G_g| - 1)^(-1/4), with d parameters and |G_g|
    training examples; z multiplies e_g (supplement, 8.3). `groups` names the group of each class.

    A group alone in the batch is all of d_all, so its h_g is 0; in whatever direction, an h_g that
    is 0 but for rounding has no direction and nothing moves. With `perturb` only w2 and b2 move:
    theta, d_g and d are theirs. The regulariser of Eq. 15 is left out.
    """
    batch_size = len(x)
    counts = np.asarray(class_counts, dtype=np.float64)
    groups = np.asarray(groups)
    names = {"classifier": CLASSIFIER, "all": ALL}[perturb]
    theta = {name: params[name] for name in names}
    d = sum(value.size for value in theta.values())

    # The rows of each group that is in the batch.
    present = []
    for g in np.unique(groups):
        group_part = part_in(y, groups == g)
        rows = group_part > 0.0
        if rows.any():
            size = counts[groups == g].sum()
            present.append((x[rows], y[rows], group_part[rows] / batch_size, size))

    # Eq. 11: their gradients, and that of the whole batch.
    of_groups = []
    d_all = zeros(theta)
    for x_g, y_g, weights, _ in present:
        gradient_g = weighted_gradient(params, x_g, y_g, weights)
        gradient_g = {name: gradient_g[name] for name in names}
        of_groups.append(gradient_g)
        d_all = add(d_all, gradient_g)
    all_squared = sum((value**2).sum() for value in d_all.values())

    gradient = zeros(params)
    for (x_g, y_g, weights, size), d_g in zip(present, of_groups, strict=True):
        if size < 2:
            raise ValueError(f"a group has {size:g} examples: GSA needs at least 2")

        # Eqs. 12, 13: the direction.
        along = zeros(theta)
        if all_squared > 0.0:
            product = sum((d_g[name] * d_all[name]).sum() for name in names)
            along = scale(product / all_squared, d_all)
        if direction == "orthogonal":
            h_g = add(d_g, scale(-1.0, along))
            if len(present) == 1:
                h_g = zeros(theta)
        elif direction == "plain":
            h_g = d_g
        elif direction == "projection":
            h_g = along
        else:
            raise ValueError(f"direction = {direction!r}")

        # Eq. 14: how far.
        length = norm(h_g)
        if length <= 1e-12 * norm(d_g):
            e_g = zeros(theta)
        else:
            rho_g = np.sqrt(norm(theta) / (2.0 * length)) * d ** (-0.25) * (size - 1.0) ** (-0.25)
            e_g = scale(z * np.sqrt(d) * rho_g / length, h_g)

        gradient = add(gradient, weighted_gradient(add(params, e_g), x_g, y_g, weights))
    return gradient


# ---------------------------------------------------------------------------------- the training


def sgd_momentum(
    params: Params,
    velocity: Params,
    gradient: Params,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Params, Params]:
    """v = mu v + (g + wd theta), theta = theta - lr v (torch.optim.SGD); returns (theta, v)."""
    velocity = {
        name: momentum * velocity[name] + (gradient[name] + weight_decay * params[name])
        for name in params
    }
    params = {name: params[name] - lr * velocity[name] for name in params}
    return params, velocity


def train(
    gradient_fn: Callable[[Params, Array, NDArray, int], Params],
    params: Params,
    batches: Iterable[Batch],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> list[Params]:
    """One `sgd_momentum` step for each batch, v_0 = 0; the parameters after each step."""
    velocity = zeros(params)
    history = []
    for step, (x, y) in enumerate(batches):
        gradient = gradient_fn(params, x, y, step)
        params, velocity = sgd_momentum(params, velocity, gradient, lr, momentum, weight_decay)
        history.append(params)
    return history


def make_batches(
    seed: int,
    class_counts: ArrayLike,
    sizes: Sequence[int],
    kinds: Sequence[Kind],
    *,
    eta: float,
    features: int = 5,
) -> list[Batch]:
    """(x float64[B, features], y int64[B]) for each (size, kind); tail is n_c <= eta.

    "mixed" has at least one head and one tail row, "no_tail" head rows only, "only_tail" tail rows
    only. A smaller last size makes the partial last batch. Classes are drawn uniformly, so that
    tail rows are common; x is Gaussian around a centre of its class.
    """
    if len(sizes) != len(kinds):
        raise ValueError(f"{len(sizes)} sizes but {len(kinds)} kinds")
    rng = np.random.default_rng(seed)
    counts = np.asarray(class_counts)
    head_classes = np.flatnonzero(counts > eta)
    tail_classes = np.flatnonzero(counts <= eta)
    centres = rng.normal(size=(len(counts), features))

    batches = []
    for size, kind in zip(sizes, kinds, strict=True):
        if kind == "mixed":
            if size < 2:
                raise ValueError(f"a mixed batch needs a head and a tail row, size is {size}")
            y = rng.integers(len(counts), size=size)
            y[0] = rng.choice(head_classes)
            y[1] = rng.choice(tail_classes)
            rng.shuffle(y)
        elif kind == "no_tail":
            y = rng.choice(head_classes, size=size)
        elif kind == "only_tail":
            y = rng.choice(tail_classes, size=size)
        else:
            raise ValueError(f"kind = {kind!r}: expected 'mixed', 'no_tail' or 'only_tail'")
        x = centres[y] + rng.normal(size=(size, features))
        batches.append((x, y))
    return batches
