"""What the measurements add up to: figures of each seed by group, and tables beside SGD."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from scipy import stats

from experiments.analysis.measure import RISES, firsts
from experiments.analysis.subjects import Subject
from experiments.host.errors import RunError

# The columns of the table, and of which a smaller one is flatter.
CURVATURE = ("largest", "smallest", "ratio", "trace")
MEASURES = (*CURVATURE, *RISES)
LEVELS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def figures(
    subject: Subject, groups: dict[str, np.ndarray], found: dict[str, Any], seed: int
) -> dict[str, dict[str, float | None]]:
    """MEASURES and LEVELS by group, of the seed at this place; None where nothing was measured.

    "ratio" is |smallest| / largest, how much of a saddle it is; "trace_error" the standard error
    of the trace over its probes. Accuracies are percent of rows, not means over classes.
    """
    lines = {}
    labels = subject.train.labels[0]
    counted = subject.loss is None
    for place, (name, group) in enumerate(groups.items()):
        ends = found.get(f"ends of {firsts(groups)[name]}")
        low, high = (ends["smallest"][seed], ends["largest"][seed]) if ends else (None, None)
        forms = np.asarray(found["traces"][name][seed])
        line: dict[str, float | None] = {
            "examples": int(group[labels].sum()),
            "largest": high,
            "smallest": low,
            "ratio": None if low is None or high is None or high <= 0 else abs(low) / high,
            "trace": float(forms.mean()),
            "trace_error": float(forms.std(ddof=1) / math.sqrt(len(forms))),
            **{rise: found["rises"][rise][seed][place] for rise in RISES if rise in found["rises"]},
            "random_error": found["rises"]["random_error"][seed][place],
            "own": found["own"]["own"][seed][place] if "own" in found else None,
            "worst": found["worst"][name][seed] if name in found.get("worst", {}) else None,
        }
        for part in ("train", "test"):
            sums = {
                k: np.atleast_2d(v)[0 if len(subject.seeds) == 1 else seed][group].sum()
                for k, v in found["levels"][part].items()
            }
            rows = sums["total"]
            line[f"{part}_loss"] = float(sums["loss"] / rows) if rows else None
            hits = float(100 * sums["correct"] / rows) if rows and counted else None
            line[f"{part}_accuracy"] = hits
        lines[name] = line
    return lines


def record(subject: Subject, seed: int, lines: dict[str, Any]) -> dict[str, Any]:
    """One model's entry in analysis.json."""
    return {
        "run": subject.run,
        "name": name_of(subject.description),
        **subject.description,
        "seed": subject.seeds[seed],
        "epoch": subject.epoch,
        "groups": lines,
    }


def name_of(description: dict[str, Any]) -> str:
    """What a line is called: its rule, the numbers of the rule, its loss.

    >>> name_of({"rule": "sam", "rule_args": {"rho": 0.1}, "loss": "cross_entropy"})
    'sam rho=0.1, cross_entropy'
    """
    args = {k: v for k, v in (description["rule_args"] or {}).items() if "rho" in k}
    numbers = "".join(f" {k}={v:g}" for k, v in args.items() if isinstance(v, int | float))
    second = f" > {description['stage2']}" if description.get("stage2") else ""
    on = f", {description['on']}" if description.get("on") else ""
    return f"{description['rule']}{numbers}, {description['loss']}{second}{on}"


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line of models that differ in the seed alone: each group's mean and standard error.

    "to_sgd" has the mean difference to SGD of the same setting, loss, seed and epoch and its
    standard error, "n" the number of pairs; "tail_to_head" the ratio of tail to head, as a mean
    of logarithms over seeds, "trace_per_loss" the same of the trace over the mean loss.
    """
    lines: dict[str, dict[str, Any]] = {}
    sgd = {_pair(one): one["groups"] for one in records if one["rule"] == "sgd"}
    of_line: dict[str, list[dict[str, Any]]] = {}
    for one in records:
        of_line.setdefault(_line(one), []).append(one)
    for (key, ones), name in zip(of_line.items(), _told_apart(of_line), strict=True):
        first = {**ones[0], "name": name}
        seeds = [one["seed"] for one in ones]
        line = {k: first[k] for k in ("name", "rule", "rule_args", "loss", "epoch")}
        line["seeds"] = seeds
        line["groups"] = {}
        pairs = [
            (one["groups"], sgd[_pair(one)])
            for one in ones
            if first["rule"] != "sgd" and _pair(one) in sgd
        ]
        for group in first["groups"]:
            values = {
                name: _mean([one["groups"][group][name] for one in ones])
                for name in (*MEASURES, *LEVELS)
            }
            differences = {
                name: _mean([_minus(a[group][name], b[group][name]) for a, b in pairs])
                for name in (*MEASURES, *LEVELS)
            }
            line["groups"][group] = {**values, "to_sgd": differences if pairs else None}
        line["tail_to_head"] = {
            name: _log_ratio([(g["groups"]["tail"][name], g["groups"]["head"][name]) for g in ones])
            for name in ("largest", "trace", *RISES, "train_loss")
        }
        line["tail_to_head"]["trace_per_loss"] = _log_ratio(
            [(_per_loss(g["groups"]["tail"]), _per_loss(g["groups"]["head"])) for g in ones]
        )
        lines[key] = line
    return list(lines.values())


def explained(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of a flatter tail with a gain in test accuracy of the tail.

    x is log(measure of the tail) - that of SGD with the same loss and seed, y the difference in
    accuracy of the tail. "lines": over the means of each line (rule, numbers, loss), which ask
    whether settings that flatten more gain more; "seeds": within the lines, both less the line's
    mean, which asks it of seeds. A negative one is what the claim predicts.
    """
    sgd = {_pair(one): one["groups"]["tail"] for one in records if one["rule"] == "sgd"}
    found: dict[str, Any] = {}
    for measure in ("largest", "trace", *RISES, "train_loss"):
        of_line: dict[str, list[tuple[float, float]]] = {}
        for one in records:
            base = sgd.get(_pair(one))
            tail = one["groups"]["tail"]
            if one["rule"] == "sgd" or base is None:
                continue
            values = (tail[measure], base[measure])
            gain = _minus(tail["test_accuracy"], base["test_accuracy"])
            if None in values or min(values) <= 0 or gain is None:
                continue
            of_line.setdefault(_line(one), []).append((math.log(values[0] / values[1]), gain))
        if not of_line:
            continue
        means = np.array([np.mean(pairs, axis=0) for pairs in of_line.values()])
        inside = np.concatenate(
            [np.array(pairs) - np.mean(pairs, axis=0) for pairs in of_line.values()]
        )
        found[measure] = {"lines": _spearman(means), "seeds": _spearman(inside)}
    return found


def _spearman(pairs: np.ndarray) -> dict[str, float] | None:
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return None
    result = stats.spearmanr(pairs[:, 0], pairs[:, 1])
    return {"rho": float(result.statistic), "p": float(result.pvalue), "n": len(pairs)}


def _setting(one: dict[str, Any]) -> str:
    """What must agree for a difference to SGD."""
    same = {k: one[k] for k in ("setting", "loss", "loss_args", "stage2", "stage2_args")}
    return json.dumps(same, sort_keys=True)


def _line(one: dict[str, Any]) -> str:
    """What models of one line share: all but the seed."""
    same = {k: one.get(k) for k in ("name", "epoch", "rule_args", "ascent", "passes")}
    return json.dumps(same, sort_keys=True) + _setting(one)


def line_names(subjects: list[Subject]) -> list[str]:
    """The name of each one's line, as the table has it."""
    of_line: dict[str, list[dict[str, Any]]] = {}
    keys = []
    for one in map(_about, subjects):
        keys.append(_line(one))
        of_line.setdefault(keys[-1], []).append(one)
    names = dict(zip(of_line, _told_apart(of_line), strict=True))
    return [names[key] for key in keys]


def _about(one: Subject) -> dict[str, Any]:
    return {"name": name_of(one.description), "epoch": one.epoch, **one.description}


def _told_apart(of_line: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The names of lines; those that would have the same say what differs."""
    firsts = [ones[0] for ones in of_line.values()]
    about = ("rule_args", "ascent", "passes", "loss_args", "setting", "stage2_args")
    facts = [_flat({k: one.get(k) for k in about}) for one in firsts]
    names = []
    for one, mine in zip(firsts, facts, strict=True):
        same = [
            theirs for other, theirs in zip(firsts, facts, strict=True)
            if other["name"] == one["name"]
        ]  # fmt: skip
        odd = sorted(
            key for key in {k for x in same for k in x} if len({str(x.get(key)) for x in same}) > 1
        )
        more = ", ".join(f"{key.split('.')[-1]}={mine.get(key)}" for key in odd)
        names.append(f"{one['name']} ({more})" if odd else one["name"])
    return names


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}.{key}").items()}


def without_sgd(summary: list[dict[str, Any]]) -> list[str]:
    """The names of lines that have no SGD of their setting, where there is any SGD."""
    if not any(line["rule"] == "sgd" for line in summary):
        return []
    alone = [
        line["name"] for line in summary
        if line["rule"] != "sgd" and all(x["to_sgd"] is None for x in line["groups"].values())
    ]  # fmt: skip
    return list(dict.fromkeys(alone))


def refuse_twice(subjects: list[Subject]) -> None:
    """Refuses a seed that is in a line twice, before anything is measured.

    Raises:
      RunError: two models differ in nothing but the folder they lie in.
    """
    seen: dict[str, str] = {}
    for one in subjects:
        for seed in one.seeds:
            key = f"{_line(_about(one))} seed {seed}"
            if seen.setdefault(key, one.run) != one.run:
                raise RunError(
                    f"{seen[key]} and {one.run} are of one setting and seed {seed}: leave one out"
                )


def _pair(one: dict[str, Any]) -> str:
    """What it shares with its SGD."""
    return f"{_setting(one)} seed {one['seed']} epoch {one['epoch']}"


def _per_loss(line: dict[str, Any]) -> float | None:
    """Where a model is sure of its rows, curvature falls with the loss: what is left of it."""
    return line["trace"] / line["train_loss"] if line["train_loss"] else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: list[float | None]) -> dict[str, float | None] | None:
    """{"mean", "error", "n"}: the standard error over seeds, None of a single one."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    error = float(np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "error": error, "n": len(known)}


def _log_ratio(pairs: list[tuple[float | None, float | None]]) -> dict[str, Any] | None:
    """{"ratio", "low", "high", "n"}: exp of the mean logarithm, and of two errors to each side."""
    logs = [math.log(a / b) for a, b in pairs if a is not None and b is not None and a > 0 < b]
    found = _mean(list(logs))
    if found is None or found["mean"] is None:
        return None
    spread = 2 * (found["error"] or 0.0)
    low, high = (math.exp(found["mean"] + s * spread) for s in (-1, 1))
    return {"ratio": math.exp(found["mean"]), "low": low, "high": high, "n": found["n"]}


# --------------------------------------------------------------------------------------- table.md


def table(summary: list[dict[str, Any]], measures: tuple[str, ...] = MEASURES) -> str:
    """Markdown: a line for each line and group, mean ± standard error over seeds."""
    heads = ["run", "epoch", "group", *(_HEADS[name] for name in measures), "train %", "test %"]
    rows = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for line in summary:
        for group, values in line["groups"].items():
            cells = [values[name] for name in (*measures, "train_accuracy", "test_accuracy")]
            rows.append([line["name"], str(line["epoch"]), group, *map(_cell, cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def differences(summary: list[dict[str, Any]], measures: tuple[str, ...] = MEASURES) -> str:
    """Markdown: the same less SGD, paired; "" where no run has its SGD."""
    heads = [
        "less SGD",
        "epoch",
        "group",
        *(_HEADS[name] for name in measures),
        "train %",
        "test %",
    ]
    rows = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for line in summary:
        for group, values in line["groups"].items():
            if values["to_sgd"] is not None:
                of = values["to_sgd"]
                cells = [of[name] for name in (*measures, "train_accuracy", "test_accuracy")]
                rows.append([line["name"], str(line["epoch"]), group, *map(_cell, cells)])
    return "" if len(rows) == 2 else "\n".join("| " + " | ".join(row) + " |" for row in rows)


_HEADS = {
    "largest": "λ max", "smallest": "λ min", "ratio": "\\|λ min\\| / λ max", "trace": "trace",
    "own": "rise, own e", "sam": "rise, SAM's e", "imbsam": "rise, ImbSAM's e",
    "random": "rise, random", "worst": "rise, worst",
}  # fmt: skip


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    error = "" if value["error"] is None else f" ± {value['error']:.2g}"
    return f"{value['mean']:.3g}{error}"
