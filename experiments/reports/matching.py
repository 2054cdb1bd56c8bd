"""Which published results stand beside a run, and in what the run differs from their protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.reports.published import PROTOCOLS, RESULTS, Result


def beside(facts: Mapping[str, Any]) -> list[Result]:
    """The published results of a run's data, rule, loss and second stage.

    Args:
      facts: what is known of the run, flat: "dataset", "imbalance_factor" (largest over smallest
        class), "rule", "loss" (with "+drw"), "stage2", the dict "ascent", and its settings and
        arguments of the rule by name; of shrunk images, of a "subset" None that nobody knows, or
        of a natural set whose classes are of other sizes than the published one's, there are none.
    """
    if facts.get("shrink", 1) != 1 or facts.get("subset", "first") is None:
        return []  # other images, or nobody knows which
    found = [r for r in RESULTS if r.dataset == _dataset(facts) and _same_factor(facts, r)]
    found = [r for r in found if (r.rule, r.recipe) == (facts["rule"], facts["stage2"])]
    found = [r for r in found if r.loss in (None, facts["loss"])]
    return [r for r in found if r.overrides.get("tail_weight") == facts.get("tail_weight")]


def differences(
    facts: Mapping[str, Any], protocol: str, overrides: Mapping[str, Any] = {}
) -> list[str]:
    """In what a run differs from a protocol, as far as that is known; `facts` as of `beside`."""
    stated = {**_expected(facts, protocol), **{k: ((v,), False) for k, v in overrides.items()}}
    if not stated:
        return ["its settings are not known"]
    usual: dict[str, Any] = {k: (allowed, False) for k, allowed in _USUAL.items()}
    found = []
    for name, (allowed, guessed) in sorted({**usual, **stated}.items(), key=_place):
        if facts.get(name) not in allowed:
            theirs = " or ".join(map(text, allowed)) + " (a guess)" * guessed
            own = facts.get(name)
            known = f"{name} {text(own)}, not {theirs}"
            found.append(f"{name} not known, theirs {theirs}" if own is None else known)
    # The passes that move running statistics are told apart only where a protocol names them.
    beyond = facts["ascent"].keys() - stated.keys() - {"running_statistics"}
    return found + [f"{name} {text(facts['ascent'][name])}" for name in sorted(beyond)]


def marks(facts: Mapping[str, Any]) -> list[str]:
    """The protocols whose settings, guesses too, a run shares, of those known well enough."""
    identifying = {"model", "batch_size", "lr", "epochs"}
    known = [name for name in PROTOCOLS if identifying <= _expected(facts, name).keys()]
    return [name for name in known if not differences(facts, name)]


def text(value: Any) -> str:
    """As in tables: no more digits than needed."""
    return f"{value:g}" if isinstance(value, float) else str(value)


# Images of the largest and of the smallest class.
_NATURAL = {"imagenet": (1280, 5), "places": (4980, 5), "inaturalist2018": (1000, 2)}


def is_other_set(facts: Mapping[str, Any]) -> bool:
    """Whether a run named a set that is published whole, and had one of another imbalance.

    So have folders of one's own images, which are read as one of these sets. What was held out is
    not counted.
    """
    held = facts.get("val_per_class") or 0
    sizes = [n - min(held, n - 1) for n in _NATURAL.get(_dataset(facts), ())]
    return bool(sizes) and round(facts["imbalance_factor"]) != round(sizes[0] / sizes[1])


_LARGEST = {"cifar10": 5000, "cifar100": 500}
# What every protocol is taken to have unless it says otherwise.
_USUAL: dict[str, tuple[Any, ...]] = {
    "val_per_class": (0,), "mixup": (0.0,), "augment": (True,), "sampling": ("natural",),
    # Independent examples change no number, split_norm and shared_norm do.
    "examples": ("dependent", "independent"), "memory": (None,), "shrink": (1,),
    "features": (False,), "pretrained": (False,),
}  # fmt: skip


def _place(item: tuple[str, Any]) -> int:
    order = ("model", "epochs", "batch_size", "lr", "schedule", "weight_decay")
    return order.index(item[0]) if item[0] in order else len(order)


def _same_factor(facts: Mapping[str, Any], result: Result) -> bool:
    if result.imbalance_factor is None:
        return not is_other_set(facts)
    factors = {result.imbalance_factor}
    if result.dataset in _LARGEST:
        # The smallest class is a whole number: of 500 images, factor 200 leaves 2, which is 250.
        largest = _LARGEST[result.dataset]
        factors.add(round(largest / (largest // result.imbalance_factor)))
    return round(facts["imbalance_factor"]) in factors


def _dataset(facts: Mapping[str, Any]) -> str:
    name = str(facts["dataset"]).lower().replace("-", "_").removesuffix("_lt")
    return name.replace("i_naturalist", "inaturalist")


def _expected(facts: Mapping[str, Any], protocol: str) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """What a run of that data and rule has to have: name -> (any of these, is it a guess)."""
    dataset, rule = _dataset(facts), facts["rule"]
    rules = {None, rule} if rule in ("sgd", "cc_sam") else {None, rule, "perturbed"}
    settings = PROTOCOLS[protocol].settings
    if not any(dataset in each.datasets for each in settings):
        return {}
    return {
        name: (allowed, name in each.guesses)
        for each in settings
        if each.rule in rules and (not each.datasets or dataset in each.datasets)
        for name, allowed in each.values.items()
    }
