"""A plan: what flags ask for of one data set; what can be refused then is refused then."""

import dataclasses

import numpy as np
import pytest

from experiments import cifar_lt
from experiments.command.plan import make_plan
from experiments.host.errors import RunError
from imbsam_jax import losses
from tiny import tiny_dataset


def args_of(*flags):
    args = cifar_lt.parse(cifar_lt.arguments(), ["--model", "mlp", *flags])
    args.devices_by_default, args.eta = 3, 10.0
    return args


@pytest.mark.parametrize(
    ("batch", "steps"), [("16", 5), ("26", 3), ("39", 2), ("77", 2), ("78", 1)]
)
def test_an_epoch_has_a_step_for_the_last_rows_too(batch, steps):
    """78 of them. The switch of a rule, a loss's and a second stage's shares are counted so."""
    flags = ["--epochs", "4", "--switch-fraction", "0.5", "--drw-epoch", "3", "--batch-size", batch]
    plan = make_plan(
        args_of("--rule", "sse_sam", *flags, "--stage2", "cc-sam", "--stage2-epochs", "10"),
        tiny_dataset(), {},
    )  # fmt: skip
    assert plan.description["rule_args"]["switch_step"] == 2 * steps
    share = plan.second["cc-sam"].adversary.share
    assert [share(k * steps) for k in (0, 1, 9)] == pytest.approx([0.1, 0.2, 1.0])
    logits, labels = tiny_logits()
    plain = losses.cross_entropy(logits, labels)
    same = [bool((plan.loss(logits, labels, k) == plain).all()) for k in (0, 3 * steps - 1)]
    assert same == [True, True]
    assert not (plan.loss(logits, labels, 3 * steps) == plain).all()


def tiny_logits():
    return np.random.default_rng(0).normal(size=(6, 5)).astype("f"), np.array([0, 1, 2, 3, 4, 4])


def test_what_a_plan_says_of_a_run():
    args = args_of("--rule", "sam", "--rho", "0.5", "--lr", "0.25", "--loss", "ldam")
    plan = make_plan(args, tiny_dataset(), {"subset": "first", "val_per_class": 7})
    assert plan.description == {
        "experiment": "cifar_lt", "rule": "sam", "rule_args": {"rho": 0.5}, "ascent": {},
        "loss": "ldam", "loss_args": {"max_margin": 0.5, "scale": 30.0, "scale_logits": True},
        "imbalance_factor": pytest.approx(40 / 3), "val_per_class": 7, "subset": "first",
        "preset": None, "stage2": None, "stage2_args": {},
    }  # fmt: skip
    assert (plan.settings.lr, plan.settings.classifier) == (0.25, "normalised")
    assert (plan.settings.devices, plan.start, plan.init, plan.second) == (3, None, None, {})
    args.devices = 2
    assert make_plan(args, tiny_dataset(), {}).settings.devices == 2


@pytest.mark.parametrize(
    ("flags", "changes", "said"),
    [
        ([], {"lr": -1.0}, "--lr must be finite and positive"),
        (["--val-per-class", "2"], {}, "--val-per-class holds images out"),
        (["--sampling", "stratified", "--rule", "sgd"], {"eta": 1.0}, "leaves no tail class"),
        (["--examples", "independent", "--mixup", "1"], {}, "--mixup 1 every row is of two"),
        (["--stage2", "crt", "--stage2-sampling", "stratified", "--rule", "sgd"], {"eta": 1.0},
         "leaves no tail"),
        (["--stage2", "crt", "--stage2-epochs", "1"], {}, "one epoch would train nothing"),
        (["--stage2", "tau-norm"], {"loss": "ldam"}, "starts from a linear"),
        (["--stage2", "logit-adjustment"], {"loss": "logit_adjusted"}, "logit-adjustment"),
    ],
)  # fmt: skip
def test_what_is_refused_with_the_data_at_hand(flags, changes, said):
    args = args_of(*flags)
    vars(args).update(changes)
    with pytest.raises(RunError, match=said):
        make_plan(args, tiny_dataset(), {})


def test_images_that_were_held_out_are_there():
    data = tiny_dataset()
    held = dataclasses.replace(data, val_images=data.test_images, val_labels=data.test_labels)
    plan = make_plan(args_of("--val-per-class", "2"), held, {})
    assert plan.description["val_per_class"] == 2
