"""Presets have the published numbers, and make methods, losses and stages that take a step."""

import jax
import numpy as np
import pytest

from experiments import cifar_lt
from experiments.command import loss_flags, method_flags, presets, stage2
from experiments.run.settings import Settings
from experiments.step.objectives import Objective
from tiny import COUNTS

pytestmark = pytest.mark.allow_rank_promotion  # Flax's bias and batch normalisation

# METHODS 1.4 to 1.7, 3.2, 3.3, 3.6, written down apart from presets.py.
PUBLISHED = {
    "imbsam-paper": "resnet34_3x3 64 0.01 5e-3 cosine-prestep imbsam rho=0.05 eta=100 tail_scale=1",
    "imbsam-release": "resnet34_3x3 64 0.01 1e-3 cosine-prestep imbsam rho=0.05 eta=20 "
    "tail_scale=2",
    "focal-sam-paper": "resnet32 64 0.1 1e-3 cosine focal_sam rho=0.3 gamma=3.2 strength=0.8 tau=1",
    "focal-sam-paper-cifar10": "resnet32 64 0.1 2e-4 cosine focal_sam rho=0.2 gamma=3 strength=0.5",
    "sse-sam-paper": "resnet34_3x3 64 0.01 1e-3 cosine-prestep sse_sam head_rho=0.05 tail_rho=0.1 "
    "switch_fraction=0.7 eta=100",
    "cc-sam-paper": "resnet32 64 0.1 2e-4 warmup-steps cc_sam noise_ratio=1 stage2_epochs=30",
    "cc-sam-release": "resnet32 64 0.1 2e-4 warmup-steps cc_sam noise_ratio=1e-6 flat_ratio=0.5 "
    "mixup=1 imbalance_factor=200 stage2_epochs=30 stage2_lr=0.01 stage2_limit=0.3",
    "saddle": "resnet32 128 0.1 2e-4 steps sam rho=0.8 drw_epoch=160 beta=0.9999",
    "saddle-ldam": "resnet32 128 0.1 2e-4 steps sam rho=0.8 drw_epoch=160 max_margin=0.5 scale=30",
    "ldam-drw": "resnet32 128 0.1 2e-4 steps sgd drw_epoch=160 max_margin=0.5 scale=30",
    "weight-balancing": "resnet34_3x3 64 0.01 5e-3 cosine-prestep sgd",
    "density-ratio-protocol": "resnet32 128 0.1 2e-4 cosine imbsam",
}


def test_presets_have_the_published_numbers():
    assert set(PUBLISHED) == set(presets.TABLES["cifar_lt"])
    for name, line in PUBLISHED.items():
        args = presets.parse(cifar_lt.arguments(), ["--preset", name])
        model, batch, lr, decay, schedule, rule, *more = line.split()
        assert (args.model, args.schedule, args.rule) == (model, schedule, rule), name
        numbers = {"batch_size": batch, "lr": lr, "weight_decay": decay, "epochs": "200"}
        numbers["imbalance_factor"] = "100"
        for key, value in (numbers | dict(pair.split("=") for pair in more)).items():
            assert getattr(args, key) == pytest.approx(float(value)), (name, key)
        first = name in ("imbsam-paper", "density-ratio-protocol") or rule == "cc_sam"
        assert args.running_statistics == ("first" if first else "every"), name
        assert args.dataset == ("cifar10" if name.endswith("cifar10") else "cifar100"), name
        assert args.subset == ("first" if model == "resnet34_3x3" else "shuffled"), name


def test_variants_of_presets_are_those_of_the_paper_or_the_release():
    def made(name):
        return presets.parse(cifar_lt.arguments(), ["--preset", name])

    assert (made("imbsam-paper").strict, made("imbsam-release").strict) == (False, True)
    for variant in ("paper", "release"):
        args = made(f"cc-sam-{variant}")
        assert args.cc_variant == args.stage2_variant == variant
        assert args.stage2 == ["cc-sam"] and args.stage2_lr == 0.01
        assert (args.stage2_statistics == "updated") == (variant == "release")
    balanced = made("weight-balancing")
    assert (balanced.stage2, balanced.stage2_max_norm) == (["weight-balancing"], "step")
    deferred = {name: made(name).loss for name in ("saddle", "saddle-ldam", "ldam-drw")}
    assert deferred == {"saddle": "cross_entropy", "saddle-ldam": "ldam", "ldam-drw": "ldam"}
    focal = made("focal-sam-paper"), made("focal-sam-paper-cifar10")
    assert {(args.loss, args.tau) for args in focal} == {("logit_adjusted", 1.0)}


# With the method and the loss of another preset or two, by other numbers.
AGAIN = {"focal-sam-paper-cifar10", "density-ratio-protocol", "saddle-ldam"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in AGAIN))
        for name in presets.TABLES["cifar_lt"]
    ],
)
def test_presets_build_and_take_a_step(one_step, name):
    parser = cifar_lt.arguments()
    preset = presets.TABLES["cifar_lt"][name]
    assert set(preset.flags) <= {action.dest for action in parser._actions}
    args = presets.parse(parser, ["--preset", name])
    options = {**vars(args), "eta": 10.0}
    method, _ = method_flags.build_method(args.rule, np.array(COUNTS), options, steps_per_epoch=5)
    loss, _ = loss_flags.build_loss(args.loss, np.array(COUNTS), options, steps_per_epoch=5)
    state, *_, run = one_step
    for _, stage in method.stages():
        objective = Objective(loss, 5, args.mixup)
        after, seen = jax.eval_shape(lambda s, m=stage, o=objective: run(m, o, s), state)
        assert seen.loss.shape == ()
        shapes = [leaf.shape for leaf in jax.tree.leaves(after.batch_stats)]
        assert shapes == [leaf.shape for leaf in jax.tree.leaves(state.batch_stats)]
    for stage_name in args.stage2:
        made = stage2.make(
            stage_name, options, class_counts=np.array(COUNTS), first=Settings(),
            steps_per_epoch=5,
        )  # fmt: skip
        assert made.settings.epochs == {"cc-sam": 30, "weight-balancing": 10}[stage_name]
    said = presets.explain(args)
    assert said.startswith(f"preset {name}: ")
    assert said.count("not published") == len(preset.unpublished)
    for key in preset.flags:
        assert f"--{key.replace('_', '-')}" in said.replace("--no-", "--")


def test_help_is_that_of_the_entry(capsys):
    with pytest.raises(SystemExit):
        presets.parse(cifar_lt.arguments(), ["--preset", "saddle", "--help"])
    said = capsys.readouterr().out
    assert "Train on long-tailed CIFAR" in said and "--imbalance-factor" in said


def test_a_flag_beside_a_preset_wins_and_is_shown():
    flags = ["--lr", "0.5", "--preset", "imbsam-release", "--eta=7", "--no-strict"]
    args = presets.parse(cifar_lt.arguments(), flags)
    assert (args.lr, args.eta, args.tail_scale, args.strict) == (0.5, 7.0, 2.0, False)
    said = presets.explain(args)
    assert "--lr 0.5  (preset: 0.01)" in said and "--tail-scale 2.0\n" in said
    assert "--no-strict  (preset: True)" in said
