"""What a group of runs is called in tables: its method, setting, data, protocol and seeds."""

from __future__ import annotations

from typing import Any

from experiments.reports import matching, published
from experiments.reports.grouping import METHOD, Group
from experiments.reports.matching import text
from experiments.reports.published import Result


def method(group: Group) -> str:
    """Its rule with arguments, and its loss where that is not cross-entropy."""
    first = group.identity.get("first", group.identity)
    words = [group.facts["rule"]]
    for name in ("rule_args", "ascent", "loss_args"):
        if name == "loss_args" and first["loss"] != "cross_entropy":
            words.append(first["loss"])
        words += _words(first.get(name, {}))
    passes = ("memory", "examples", "tail_statistics")
    words += _words({name: first[name] for name in passes if name in first})
    if "stage2" in group.identity:
        own = group.identity.get("stage2_args", {})
        words += ["then", group.identity["stage2"]]
        words += _words({k: v for k, v in own.items() if k not in _TRAINING})
        words += [] if "first" in group.identity else ["(first stage not found)"]
    return " ".join(words)


# Of the arguments of a second stage, how it is trained.
_TRAINING = (
    "epochs",
    "lr",
    "weight_decay",
    "schedule",
    "sampling",
    "statistics",
    "max_norm",
    "rule",
)


def setting(group: Group) -> str:
    """Model, length, learning rate, what else is not as usual, and how a second stage trains."""
    facts, first = group.facts, group.identity.get("first", group.identity)
    shown = f"{facts['model']}, {facts['epochs']:g} epochs, batch {facts['batch_size']:g}"
    shown += f", lr {text(facts.get('lr'))} {facts.get('schedule')}"
    shown += f", weight decay {text(facts.get('weight_decay'))}"
    hidden = {"lr", "schedule", "weight_decay", "epochs", "batch_size", "model", "dataset",
              "imbalance_factor", "class_counts_sha256", "source", "thresholds", "loss",
              "loss_args", "stage2", "stage2_args", "first", "shrink", "rows_sha256", "jax",
              *METHOD}  # fmt: skip
    own = {k: v for k, v in first.items() if k not in hidden}
    shown = ", ".join([shown, *_words({**own, **first.get("jax", {})})])
    if rows := first.get("rows_sha256"):  # enough of it to tell two data sets of one name apart
        shown += f", images {'/'.join(str(of)[:6] for of in rows.values())}"
    second = group.identity.get("stage2_args", {})
    words = _words({k: second[k] for k in _TRAINING if k in second})
    if group.identity.get("jax") != first.get("jax"):
        words += _words(group.identity.get("jax", {})) or ["JAX's defaults"]
    return shown + (f"; then {', '.join(words)}" if words else "")


def _words(values: dict[str, Any]) -> list[str]:
    return [f"{name} {text(value)}" for name, value in values.items()]


def data(group: Group) -> str:
    """Data set and imbalance factor, and what was done to the images where that is known."""
    facts, shrink = group.facts, group.facts["shrink"]
    found = f"{facts['dataset']} IF {round(facts['imbalance_factor'], 1):g}"
    if shrink != 1:
        found += f", every {shrink}x{shrink} pixels averaged (not the papers' data)"
    elif facts["subset"] is None:
        found += " of a file (not known to be the papers' data)"
    elif matching.is_other_set(facts):
        found += " (not the papers' data)"
    return found


def protocol(group: Group) -> str:
    """The names of the protocols it follows, or "own"; a second stage's is that of its first."""
    return ", ".join(matching.marks(group.facts)) or "own"


def source(result: Result) -> str:
    """Who says so, where, and whether that was read in the source itself."""
    table = "" if result.table == "-" else f", {result.table}"
    return published.SOURCES[result.source] + table + ("" if result.verified else " (unverified)")


def differs(group: Group, result: Result) -> list[str]:
    """In what a group differs from the protocol of a published result: "lr 0.1, not 0.01"."""
    found = matching.differences(group.facts, result.protocol, result.overrides)
    seed = published.PROTOCOLS[result.protocol].seed
    known = seed is not None and group.seeds != [seed]
    own = "seed" if len(group.seeds) == 1 else "seeds"
    return found + [f"{own} {seed_list(group)}, not {seed}"] * known


def seed_list(group: Group) -> str:
    """0-4 for three or more in a row, else 0, 2."""
    seeds = group.seeds
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
