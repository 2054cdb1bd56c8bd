"""What the flags of the commands are where none is given, and what their numbers may be."""

from __future__ import annotations

from typing import Any

# Wherever there is the flag, but for OWN; a flag in neither is None, off or empty.
DEFAULTS: dict[str, Any] = {
    "accumulate": 1, "adaptive": "none", "asam-eta": 0.01, "batch-size": 64, "beta": 0.9999,
    "cc-perturb": "classifier", "cc-variant": "paper", "classifier": "auto",
    "dataset": "cifar100", "depth": 2, "directions": 10, "epochs": 200, "eta": 100.0,
    "eval-batch": 500, "eval-every": 1, "examples": "dependent", "focal-gamma": 1.0, "folds": 3,
    "gamma": 3.2, "gsa-direction": "orthogonal", "gsa-scale": 0.01, "head-rho": 0.05,
    "heartbeat-seconds": 100, "image-size": 224, "imbalance-factor": 100.0, "iterations": 12,
    "keep-checkpoints": 2, "label-ratio": [0.25], "loader": "grain", "loss": "cross_entropy",
    "margin-alone": True, "max-corrupt": 0.001, "max-margin": 0.5, "method": ["devnet", "deepsad"],
    "momentum": 0.9, "normalise": "weights", "optimizer": "sgd", "p-norm": 2.0, "parallel": "jit",
    "perturb": "all",
    "precision": "float32", "probes": 12, "protocol": ["adbench"], "reach": 1.0,
    "reference": ["trees", "logistic"], "resize": 256, "rho": 0.05, "rho-schedule": "constant",
    "rule": "imbsam", "running-statistics": "first", "sampling": "natural", "scale": 30.0,
    "schedule": "cosine-prestep", "settings": 8, "shrink": 1, "splits": 10, "stage2-limit": 1.0,
    "stage2-rule": "sgd", "stage2-statistics": "frozen", "stage2-tau": 1.0,
    "stage2-variant": "paper", "strength": 0.8, "subset": "first", "switch-fraction": 0.7,
    "tail-rho": 0.1, "tail-scale": 1.0, "tail-weight": 2.0, "tau": 1.0, "test-share": 0.3,
    "vs-gamma": 0.3, "width": 64,
}  # fmt: skip

_DIGITS = {
    "batch-size": 32, "epochs": 100, "eta": 20.0, "gamma": 3.0, "head-rho": 0.1,
    "imbalance-factor": 50.0, "lr": 0.1, "noise-ratio": 1e-6, "num-seeds": 20, "rho": 0.2,
    "strength": 0.5, "tail-rho": 0.2, "weight-decay": 5e-4,
}  # fmt: skip
_CIFAR = {"checkpoint-every": 10, "lr": 0.01, "model": "resnet34_3x3", "weight-decay": 5e-3}
# What a command has otherwise.
OWN: dict[str, dict[str, Any]] = {
    "experiments.cifar_lt": _CIFAR,
    "experiments.sweep cifar_lt": _CIFAR,
    "experiments.imagenet_lt": {
        "checkpoint-every": 1, "dataset": "imagenet_lt", "jitter": 0.4, "lr": 0.025,
        "model": "resnext50_32x4d", "weight-decay": 5e-4,
    },
    "experiments.inaturalist": {
        "batch-size": 512, "checkpoint-every": 1, "lr": 0.2, "model": "resnet50",
        "weight-decay": 1e-4,
    },
    "experiments.finetune": {
        "adapter": "adaptformer", "batch-size": 128, "checkpoint-every": 1, "classifier": "cosine",
        "classifier-start": "auto", "epochs": 10, "eval-batch": 128, "image-size": None,
        "jitter": 0.0,
        "loss": "logit_adjusted", "lr": 0.01, "model": "clip_vit_b16",
        "prompt": "a photo of a {}.", "resize": None, "schedule": "cosine", "weight-decay": 5e-4,
    },
    # None is 0.001 here too; a run that has no files of images refuses it.
    "experiments.evaluate": {"max-corrupt": None},
    "experiments.digits_lt": {
        **_DIGITS, "loss": ["cross_entropy"], "rule": ["sgd", "sam", "imbsam"],
    },
    "experiments.sweep": _DIGITS,
    "experiments.anomaly": {
        "epochs": 50, "lr": 1e-3, "out": "runs/anomaly", "rule": ["sgd", "sam", "imbsam"],
        "seeds": [0, 1, 2],
    },
    "experiments.analyse": {"batch-size": 100, "eta": None, "max-corrupt": None, "steps": 3},
    # What is not given is chosen by validation rows.
    "experiments.compare": {
        **dict.fromkeys((
            "beta", "epochs", "eta", "focal-gamma", "gamma", "gsa-scale", "rho", "strength",
            "tail-weight", "tau",
        )),
        "loss": ["cross_entropy", "logit_adjusted", "class_balanced", "focal"], "model": "mlp",
        "rule": ["sgd", "sam", "imbsam", "focal_sam", "gsa"], "sampling": ["shuffled", "balanced"],
    },
}  # fmt: skip

_MANY = 10**6
# Flags by the range of their number, COMMAND/FLAG where that command has another.
RANGES: dict[str, str] = {
    f"whole, at least 1 and at most {_MANY}": "accumulate batch-size checkpoint-every epochs "
    "eval-batch eval-every heartbeat-seconds images-per-class rho-boundaries stage2-epochs",
    f"whole, at least 0 and at most {_MANY}": "drw-epoch steps-per-call val-per-class",
    f"whole, at least 2 and at most {_MANY}": "keep-checkpoints",
    "whole, at least 1 and at most 10000": "num-processes num-seeds",
    "whole, at least 0 and at most 10000": "adapter-size process-id",
    "whole, at least 2 and at most 10000": "directions",
    "whole, at least 2 and at most 100000": "probes",
    "whole, at least 1 and at most 1000": "iterations splits",
    "whole, at least 0 and at most 1000": "density steps",
    "whole, at least 0 and at most 501": "plane surface",
    "whole, at least 0 and at most 1001": "line",
    "whole, at least 1 and at most 8192": "resize",
    "whole, at least 1 and at most 4096": "image-size width",
    "whole, at least 0 and at most 4096": "devices",
    "whole, at least 1 and at most 1024": "shrink",
    "whole, at least 0 and at most 1024": "workers",
    "whole, at least 2 and at most 256": "settings",
    "whole, at least 1 and at most 20": "folds",
    "whole, at least 1 and at most 16": "depth",
    f"whole, at least 0 and at most {2**32 - 1}": "seed seeds subset-seed",
    f"whole, at least 0 and at most {2**32 - 20001}": "experiments.anomaly/seeds",
    "at least 0": "asam-eta eta focal-gamma gamma gsa-scale head-rho mixup noise-ratio rho "
    "rho-values stage2-weight-decay strength tail-rho weight-decay experiments.compare/tau",
    "at least 1": "experiments.analyse/eta imbalance-factor",
    "over 0": "experiments.analyse/rho lr reach stage2-lr tail-scale tail-weight",
    "over 1, or inf": "p-norm",
    "at least 0 and at most 1": "flat-ratio jitter max-corrupt smoothing stage2-limit "
    "switch-fraction",
    "at least 0 and below 1": "beta momentum",
    "over 0 and at most 1": "label-ratio",
    "over 0 and below 1": "test-share",
    f"at least 0 and at most {_MANY}": "max-margin",
    f"over 0 and at most {_MANY}": "scale",
    "at least -1000 and at most 1000": "stage2-tau",
    "at least 0 and at most 1000": "tau",
    "at least 0 and at most 8": "vs-gamma",
    "at least 1 and at most 1000": "cut",
    "at least 1 and at most 100": "experiments.digits_lt/imbalance-factor "
    "experiments.sweep/imbalance-factor",
}
