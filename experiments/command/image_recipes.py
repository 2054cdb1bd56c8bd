"""Published settings of image runs trained from the start: rows of `presets`."""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Flags, where they come from, and what nobody published."""

    flags: dict[str, Any]
    source: str
    unpublished: tuple[str, ...] = ()


_RELEASE_RECIPE: dict[str, Any] = {
    "dataset": "cifar100",
    "imbalance_factor": 100.0,
    "subset": "first",
    "model": "resnet34_3x3",
    "epochs": 200,
    "batch_size": 64,
    "lr": 0.01,
    "schedule": "cosine-prestep",
    "weight_decay": 1e-3,
    "running_statistics": "every",
}
_LDAM_RECIPE: dict[str, Any] = {
    "dataset": "cifar100",
    "imbalance_factor": 100.0,
    "subset": "shuffled",
    "model": "resnet32",
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "steps",
    "weight_decay": 2e-4,
    "running_statistics": "every",
}
_FOCAL_RECIPE: dict[str, Any] = {
    **_LDAM_RECIPE,
    "batch_size": 64,
    "schedule": "cosine",
    "loss": "logit_adjusted",
    "tau": 1.0,
    "rule": "focal_sam",
}
_CC_SAM_RECIPE: dict[str, Any] = {
    "dataset": "cifar100",
    "imbalance_factor": 100.0,
    "subset": "shuffled",
    "model": "resnet32",
    "epochs": 200,
    "batch_size": 64,
    "lr": 0.1,
    "schedule": "warmup-steps",
    "weight_decay": 2e-4,
    "rule": "cc_sam",
    "stage2": ["cc-sam"],
    "stage2_epochs": 30,
    "stage2_lr": 0.01,
}

CIFAR_LT: dict[str, Preset] = {
    "imbsam-paper": Preset(
        {
            **_RELEASE_RECIPE,
            "weight_decay": 5e-3,
            "running_statistics": "first",
            "rule": "imbsam",
            "rho": 0.05,
            "eta": 100.0,
            "tail_scale": 1.0,
            "strict": False,
        },
        "Zhou et al., ICCV 2023, section 4.1, Alg. 1",
        (
            "learning rate, its schedule and the network's details: the release's",
            'weight decay ("fine-tuned"): weight balancing\'s 5e-3',
            "which images each class keeps, which pass updates running statistics",
        ),
    ),
    "imbsam-release": Preset(
        {
            **_RELEASE_RECIPE,
            "rule": "imbsam",
            "rho": 0.05,
            "eta": 20.0,
            "tail_scale": 2.0,
            "strict": True,
        },
        "the official code's defaults since September 2023 (the paper has eta 100, scale 1)",
    ),
    "focal-sam-paper": Preset(
        {**_FOCAL_RECIPE, "weight_decay": 1e-3, "rho": 0.3, "gamma": 3.2, "strength": 0.8},
        "the official scripts for CIFAR-100-LT, imbalance factor 100 (ICML 2025)",
        ("settings for losses other than logit adjustment and for other imbalance factors",),
    ),
    "focal-sam-paper-cifar10": Preset(
        {**_FOCAL_RECIPE, "dataset": "cifar10", "rho": 0.2, "gamma": 3.0, "strength": 0.5},
        "the official scripts for CIFAR-10-LT, imbalance factor 100 (ICML 2025)",
        ("settings for losses other than logit adjustment and for other imbalance factors",),
    ),
    "sse-sam-paper": Preset(
        {
            **_RELEASE_RECIPE,
            "rule": "sse_sam",
            "head_rho": 0.05,
            "tail_rho": 0.1,
            "eta": 100.0,
            "switch_fraction": 0.7,
        },
        "the README of the official code (AAAI 2025), CIFAR-100-LT, imbalance factor 100",
        (
            "settings for other losses, imbalance factors and data sets",
            "the release's fourth pass, which only updates running statistics, is not made",
        ),
    ),
    "cc-sam-paper": Preset(
        {**_CC_SAM_RECIPE, "cc_variant": "paper", "noise_ratio": 1.0, "stage2_variant": "paper"},
        "Zhou et al., CVPR 2023, by way of two digests that agree",
        (
            "learning rate, schedule, weight decay, epochs: the release's",
            "no noise ratio is printed, which is 1: it breaks training on the digits",
            "lambda and T of the second stage: the release's 1 and 30 epochs",
            "which images each class keeps; running statistics of the second stage: frozen",
            "the release's mixup, which the digests do not mention, is left out",
            "strong augmentation, which the authors say the printed figures need, is not here",
        ),
    ),
    "cc-sam-release": Preset(
        {
            **_CC_SAM_RECIPE,
            "imbalance_factor": 200.0,
            "cc_variant": "release",
            "noise_ratio": 1e-6,
            "flat_ratio": 0.5,
            "mixup": 1.0,
            "stage2_variant": "release",
            "stage2_limit": 0.3,
            "stage2_statistics": "updated",
        },
        "the shipped CIFAR-100 configuration (imbalance factor 200; next to no perturbation)",
        (
            "differs still: its subset is drawn with seed 42, its network lacks two blocks, its "
            "first stage drops the last batch, its second starts from the best test epoch",
        ),
    ),
    "saddle": Preset(
        {**_LDAM_RECIPE, "rule": "sam", "rho": 0.8, "loss": "cross_entropy", "drw_epoch": 160},
        "Saddle-LongTail (NeurIPS 2022), CE-DRW with SAM on CIFAR-100-LT",
    ),
    "saddle-ldam": Preset(
        {
            **_LDAM_RECIPE,
            "rule": "sam",
            "rho": 0.8,
            "loss": "ldam",
            "max_margin": 0.5,
            "scale": 30.0,
            "drw_epoch": 160,
        },
        "Saddle-LongTail (NeurIPS 2022), LDAM-DRW with SAM on CIFAR-100-LT",
    ),
    "ldam-drw": Preset(
        {
            **_LDAM_RECIPE,
            "rule": "sgd",
            "loss": "ldam",
            "max_margin": 0.5,
            "scale": 30.0,
            "drw_epoch": 160,
        },
        "Cao et al., NeurIPS 2019, official code",
    ),
    "weight-balancing": Preset(
        {
            **_RELEASE_RECIPE,
            "rule": "sgd",
            "weight_decay": 5e-3,
            "stage2": ["weight-balancing"],
            "stage2_max_norm": "step",
        },
        "Alshammari et al., CVPR 2022, MaxNorm each step as the paper means it (200 epochs by the "
        "author's word; the notebook has 320 and projects once an epoch)",
        (
            "that the paper's own decay is the notebook's 5e-3",
            "running statistics of the second stage: frozen (the release updates them)",
        ),
    ),
    "density-ratio-protocol": Preset(
        {
            **_LDAM_RECIPE,
            "schedule": "cosine",
            "running_statistics": "first",
        },
        "the independent comparison of Luo et al., NeurIPS 2024: the training recipe alone",
        (
            "rho and eta of each method: give --rule and its flags, or this script's defaults hold",
            "which images each class keeps: drawn as LDAM does",
        ),
    ),
}


# ---- ImageNet-LT and iNaturalist 2018 ----------------------------------------------------------

_PAPER_LARGE: dict[str, Any] = {
    "epochs": 200,
    "schedule": "cosine-prestep",
    "running_statistics": "first",
    "rule": "imbsam",
    "rho": 0.05,
    "eta": 100.0,
    "tail_scale": 1.0,
    "strict": False,
    "stage2": ["lws"],
}
_PAPER_LARGE_GAPS = (
    "learning rate, schedule, weight decay, colour jitter: decoupling's, the rate per image",
    "which stages of LWS use ImbSAM: the first alone",
)
_DECOUPLING: dict[str, Any] = {
    "epochs": 90,
    "batch_size": 512,
    "lr": 0.2,
    "schedule": "cosine-prestep",
    "running_statistics": "first",
    "rule": "sgd",
    "stage2": ["tau-norm", "crt", "lws"],
    "stage2_statistics": "updated",
}
_SADDLE_LARGE: dict[str, Any] = {
    "model": "resnet50",
    "epochs": 90,
    "batch_size": 256,
    "schedule": "cosine",
    "running_statistics": "every",
    "jitter": 0.4,
    "rule": "sam",
    "rho_schedule": "step",
    "rho_boundaries": [5, 60, 75],
    "drw_epoch": 60,
}
_LDAM_LARGE: dict[str, Any] = {"loss": "ldam", "max_margin": 0.3, "scale": 30.0}
_SADDLE_GAPS = ("differs: the release's Head/Med/Tail are slices of the classes sorted by size",)
_FOCAL_LARGE: dict[str, Any] = {
    "model": "resnet50",
    "epochs": 200,
    "schedule": "cosine",
    "running_statistics": "every",
    "loss": "logit_adjusted",
    "tau": 1.0,
    "rule": "focal_sam",
    "rho_schedule": "late",
}
_FOCAL_GAPS = ("differs: the release validates on the test list and reports its best epoch",)

IMAGENET_LT: dict[str, Preset] = {
    "imbsam-paper": Preset(
        {
            **_PAPER_LARGE,
            "dataset": "imagenet_lt",
            "model": "resnext50_32x4d",
            "batch_size": 64,
            "lr": 0.025,
            "weight_decay": 5e-4,
            "jitter": 0.4,
        },
        "Zhou et al., ICCV 2023, section 4.1 and Table 2, ResNeXt-50",
        _PAPER_LARGE_GAPS,
    ),
    "decoupling": Preset(
        {
            **_DECOUPLING,
            "dataset": "imagenet_lt",
            "model": "resnext50_32x4d",
            "weight_decay": 5e-4,
            "jitter": 0.4,
        },
        "Kang et al., ICLR 2020, classifier-balancing, feat_uniform and its second stages",
        (
            "differs: the release drops the last, smaller batch of an epoch, and chooses the epoch "
            "on its validation set",
        ),
    ),
    "saddle": Preset(
        {
            **_SADDLE_LARGE,
            **_LDAM_LARGE,
            "dataset": "imagenet_lt",
            "lr": 0.2,
            "weight_decay": 2e-4,
            "rho_values": [0.05, 0.1, 0.5, 0.5],
        },
        "Saddle-LongTail (NeurIPS 2022), LDAM-DRW with SAM on ImageNet-LT",
        _SADDLE_GAPS,
    ),
    "focal-sam-paper": Preset(
        {
            **_FOCAL_LARGE,
            "dataset": "imagenet_lt",
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "jitter": 0.4,
            "rho_values": [0.1, 0.2],
            "gamma": 0.8,
            "strength": 0.8,
        },
        "the official scripts for ImageNet-LT (ICML 2025), logit adjustment",
        _FOCAL_GAPS,
    ),
}
INATURALIST: dict[str, Preset] = {
    "imbsam-paper": Preset(
        {
            **_PAPER_LARGE,
            "model": "resnet50",
            "batch_size": 512,
            "lr": 0.2,
            "weight_decay": 1e-4,
            "jitter": 0.0,
        },
        "Zhou et al., ICCV 2023, section 4.1 and Table 2, ResNet-50",
        _PAPER_LARGE_GAPS,
    ),
    "decoupling": Preset(
        {**_DECOUPLING, "model": "resnet50", "weight_decay": 1e-4, "jitter": 0.0},
        "Kang et al., ICLR 2020, classifier-balancing, 90 epochs (also published with 200)",
        (
            "differs: cRT has 30 epochs there (--stage2 crt --stage2-epochs 30); the release drops "
            "the last, smaller batch of an epoch",
        ),
    ),
    "saddle": Preset(
        {**_SADDLE_LARGE, "lr": 0.1, "weight_decay": 2e-4, "rho_values": [0.05, 0.1, 0.1, 0.2]},
        "Saddle-LongTail (NeurIPS 2022), CE-DRW with SAM on iNaturalist 2018",
        _SADDLE_GAPS,
    ),
    "saddle-ldam": Preset(
        {
            **_SADDLE_LARGE,
            **_LDAM_LARGE,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "rho_values": [0.05, 0.1, 0.5, 0.5],
        },
        "Saddle-LongTail (NeurIPS 2022), LDAM-DRW with SAM on iNaturalist 2018",
        _SADDLE_GAPS,
    ),
    "focal-sam-paper": Preset(
        {
            **_FOCAL_LARGE,
            "batch_size": 512,
            "lr": 0.2,
            "weight_decay": 2e-4,
            "jitter": 0.0,
            "rho_values": [0.2, 0.2],
            "gamma": 2.0,
            "strength": 1.1,
        },
        "the official scripts for iNaturalist 2018 (ICML 2025), logit adjustment",
        _FOCAL_GAPS,
    ),
}
