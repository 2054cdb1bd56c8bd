"""Losses by name, deferred re-weighting, smoothing, and the classifier that a loss expects."""

import argparse

import numpy as np
import pytest

from experiments import cifar_lt
from experiments.command import loss_flags
from experiments.host.errors import RunError
from imbsam_jax import losses
from tiny import COUNTS

OPTIONS = vars(cifar_lt.arguments().parse_args(["--eta", "10", "--epochs", "10"]))
LOGITS = np.array([[1.0, 0.0, -1.0, 0.5, 0.2], [0.3, 0.1, 0.0, -0.4, 2.0]])
LABELS = np.array([4, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", losses.cross_entropy),
        ("class_balanced", losses.class_balanced(COUNTS, 0.99, normalise="weights")),
        ("focal", losses.focal(2.0)),
        ("ldam", losses.ldam(COUNTS, max_margin=0.3, scale=10.0)),
        ("logit_adjusted", losses.logit_adjusted(COUNTS, tau=0.5)),
        ("vs", losses.vs(COUNTS, gamma=0.05, tau=0.5)),
        ("softmax_binary", losses.softmax_binary(COUNTS, beta=0.99)),
    ],
)
def test_losses_by_name(name, expected):
    options = {
        **OPTIONS, "beta": 0.99, "focal_gamma": 2.0, "max_margin": 0.3, "scale": 10.0, "tau": 0.5,
        "vs_gamma": 0.05,
    }  # fmt: skip
    loss, found = loss_flags.build_loss(name, np.array(COUNTS), options, steps_per_epoch=5)
    assert found["loss"] == name
    np.testing.assert_array_equal(loss(LOGITS, LABELS, 0), expected(LOGITS, LABELS))


def test_every_loss_has_a_row_above():
    (mark,) = test_losses_by_name.pytestmark
    assert {name for name, _ in mark.args[1]} == set(loss_flags.LOSSES)


@pytest.mark.parametrize("name", sorted(set(loss_flags.LOSSES) - {"ldam"}))
def test_a_loss_of_class_counts_weighs_classes_or_takes_priors(name):
    """So that neither is done twice. LDAM does none of it: margins part a class from the others."""
    of_counts = [
        loss_flags.build_loss(name, np.array(counts), OPTIONS, steps_per_epoch=5)[0]
        for counts in (COUNTS, COUNTS[::-1])
    ]
    one, other = (np.asarray(loss(LOGITS, LABELS, 0)) for loss in of_counts)
    offered = loss_flags.LOSSES[name]
    assert (one != other).any() == (offered.weighted or offered.takes_priors)
    assert loss_flags.priors_of(name) == (name if name in ("logit_adjusted", "vs") else "")


def test_deferred_reweighting_smoothing_and_the_head_of_ldam():
    options = {**OPTIONS, "drw_epoch": 2, "smoothing": 0.1, "beta": 0.99}
    loss, found = loss_flags.build_loss("ldam", np.array(COUNTS), options, steps_per_epoch=5)
    plain = losses.ldam(COUNTS)
    weights = losses.class_balanced_weights(COUNTS, 0.99)
    later = losses.weighted(plain, weights, normalise="weights")
    for step, part in ((9, plain), (10, later)):
        expected = losses.smoothed(part, 0.1)(LOGITS, LABELS)
        np.testing.assert_allclose(loss(LOGITS, LABELS, step), expected, rtol=1e-6)
    assert found["loss_args"]["drw_epoch"] == 2 and found["loss_args"]["smoothing"] == 0.1
    assert loss_flags.classifier_for("ldam", OPTIONS) == "normalised"
    assert loss_flags.classifier_for("ldam", {**OPTIONS, "scale_logits": False}) == "linear"
    assert loss_flags.classifier_for("vs", OPTIONS) == "linear"
    for name in ("class_balanced", "softmax_binary"):
        with pytest.raises(RunError, match="weighted from the start"):
            loss_flags.build_loss(name, np.array(COUNTS), options, steps_per_epoch=5)
    with pytest.raises(RunError, match="--drw-epoch 10 is past the last of 10 epochs"):
        late = {**options, "drw_epoch": 10}
        loss_flags.build_loss("ldam", np.array(COUNTS), late, steps_per_epoch=5)
    with pytest.raises(RunError, match="unknown loss 'mse'"):
        loss_flags.build_loss("mse", np.array(COUNTS), OPTIONS, steps_per_epoch=5)


def test_weights_are_deferred_to_an_epoch_from_the_first_to_the_last():
    for epoch in (0, 9):
        options = {**OPTIONS, "drw_epoch": epoch, "normalise": "batch", "beta": 0.9}
        _, found = loss_flags.build_loss("ldam", np.array(COUNTS), options, steps_per_epoch=5)
        told = {"drw_epoch": epoch, "beta": 0.9, "normalise": "batch"}
        assert found["loss_args"].items() >= told.items() and "smoothing" not in found["loss_args"]
    for epoch, said in ((-1, "must be at least 0, got -1"), (10, "10 is past the last of 10")):
        options = {**OPTIONS, "drw_epoch": epoch}
        with pytest.raises(RunError, match=f"--drw-epoch {said}"):
            loss_flags.build_loss("ldam", np.array(COUNTS), options, steps_per_epoch=5)
    for name in ("ldam", "cross_entropy"):
        _, found = loss_flags.build_loss(name, np.array(COUNTS), OPTIONS, steps_per_epoch=5)
        told = {"max_margin": 0.5, "scale": 30.0, "scale_logits": True} if name == "ldam" else {}
        assert found == {"loss": name, "loss_args": told}


@pytest.mark.parametrize(
    ("loss", "given", "found"),
    [
        ("ldam", "auto", "normalised"), ("vs", "auto", "linear"), ("ldam", None, "normalised"),
        ("ldam", "linear", "linear"), ("ldam", "normalised", "normalised"),
        ("vs", "cosine", "cosine"), ("vs", "normalised", "normalised"),
    ],
)  # fmt: skip
def test_a_classifier_that_is_named_is_taken(loss, given, found):
    """But LDAM scales cosines itself, unless it takes its margins alone."""
    assert loss_flags.classifier_for(loss, {**OPTIONS, "classifier": given}) == found
    cosine = {**OPTIONS, "classifier": "cosine"}
    with pytest.raises(RunError, match="--loss ldam scales cosines itself"):
        loss_flags.classifier_for("ldam", cosine)
    assert loss_flags.classifier_for("ldam", {**cosine, "scale_logits": False}) == "cosine"
    assert loss_flags.classifier_for("vs", {**cosine, "scale_logits": True}) == "cosine"


def test_a_loss_takes_the_least_that_its_flags_allow():
    """--help promises the range, and a refusal by the loss comes after the data."""
    parser = argparse.ArgumentParser()
    loss_flags.add_arguments(parser)
    for action in parser._actions:
        least = getattr(action.type, "least", None)
        for name, offered in loss_flags.LOSSES.items():
            if action.dest in offered.taken and least is not None:
                options = {**OPTIONS, action.dest: least}
                loss_flags.build_loss(name, np.array(COUNTS), options, steps_per_epoch=5)
