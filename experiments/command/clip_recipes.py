"""Published settings of fine-tuned CLIP: rows of `presets`."""

from __future__ import annotations

from typing import Any

# (flags, source, what is not published)
Row = tuple[dict[str, Any], str, tuple[str, ...]]

_LIFT: dict[str, Any] = {
    "model": "clip_vit_b16",
    "adapter": "adaptformer",
    "classifier": "cosine",
    "epochs": 10,
    "batch_size": 128,
    "lr": 0.01,
    "schedule": "cosine",
    "weight_decay": 5e-4,
    "loss": "logit_adjusted",
    "tau": 1.0,
}
_LIFT_FROM = "LIFT (Shi et al., ICML 2024), the official scripts"
_FOCAL: dict[str, Any] = {**_LIFT, "epochs": 20, "rule": "focal_sam"}
_FOCAL_FROM = "Focal-SAM's official scripts for CLIP (ICML 2025)"
_SUBSET = "which images each class keeps: drawn as LDAM does"


def _lift(**flags: Any) -> Row:
    gaps = (_SUBSET,) if "subset" in flags else ()
    return {**_LIFT, "rule": "sgd", "ensemble": True, **flags}, _LIFT_FROM, gaps


def _focal(rho: float, gamma: float, strength: float, **flags: Any) -> Row:
    gaps = (
        "its figures on CLIP: none were found",
        "differs: the release lacks the file of its adapter, for which LIFT's stands; it reports "
        "its best epoch on the test set",
    )
    of_rule = {"rho": rho, "gamma": gamma, "strength": strength}
    return {**_FOCAL, "resize": 224, **of_rule, **flags}, _FOCAL_FROM, gaps


_CIFAR100 = {"dataset": "cifar100", "subset": "shuffled"}
ROWS: dict[str, Row] = {
    "lift-cifar100": _lift(**_CIFAR100),
    "lift-imagenet": _lift(dataset="imagenet_lt"),
    "lift-places": _lift(dataset="places_lt"),
    "lift-inaturalist": _lift(dataset="inaturalist", epochs=20),
    "lift-vit-cifar100": _lift(model="vit_b16", **_CIFAR100),
    "focal-sam-cifar10": _focal(0.05, 1.5, 0.7, dataset="cifar10", subset="shuffled"),
    "focal-sam-cifar100": _focal(0.05, 5.5, 0.8, **_CIFAR100),
    "focal-sam-imagenet": _focal(0.05, 0.5, 0.8, dataset="imagenet_lt"),
    "focal-sam-inaturalist": _focal(0.02, 0.2, 1.0, dataset="inaturalist", resize=256),
}
