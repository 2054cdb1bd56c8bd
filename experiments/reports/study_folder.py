"""What many comparisons add up to: study.json and sets.csv, of finished folders alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.host import outputs
from experiments.host.errors import RunError
from experiments.reports import compare_folder, study_statistics
from experiments.reports.compare_folder import BASELINE
from experiments.reports.compare_shape import (
    is_bool,
    is_factor,
    is_interval,
    is_some,
    is_whole,
    misfit,
)
from experiments.reports.paired import holm, interval
from experiments.reports.reading import is_number, is_positive, is_text, or_none
from experiments.reports.scores import FALLING

STUDY, SETS = "study.json", "sets.csv"
# By threshold, by rank, by value.
METRICS = ("balanced_accuracy", "macro_f1", "auroc", "average_precision", "log_loss")
_AGAIN = "remove it, and the study, without --only-sum-up, makes it anew"
DIGITS = {"balanced_accuracy": 1, "macro_f1": 3, "auroc": 3, "average_precision": 3, "log_loss": 3}


class Set(NamedTuple):
    """A finished comparison.

    Attributes:
      name: of its data, and of how that was cut.
      summary: its summary.json.
      lines: its runs.csv.
      family: sets of one family are of one source, and count as one where independence matters.
    """

    name: str
    summary: dict[str, Any]
    lines: pd.DataFrame
    family: str


def read_set(name: str, folder: Path, family: str | None = None) -> Set:
    """Of a folder; alone in its family unless that is given."""
    return Set(name, *compare_folder.read(folder, _AGAIN), family or name)


def write(
    out: Path, sets: Sequence[Set], *, failed: Sequence[Mapping[str, str]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes study.json and sets.csv; returns what stands in the former."""
    found = {**summarise(sets), "failed": list(map(dict, failed)), "about": dict(about)}
    with outputs.writing(out):
        outputs.replace_text(out / STUDY, json.dumps(found, indent=1, allow_nan=False) + "\n")
        outputs.replace_text(out / SETS, table(found).to_csv(index=False))
    return found


def read(out: Path) -> dict[str, Any]:
    """study.json of a folder; RunError where what is drawn of it is not as `write` writes it."""
    study = outputs.read_object(out / STUDY)
    wrong = _misfit(study)
    if wrong is not None:
        raise RunError(
            f"{out / STUDY} is damaged: its {wrong} is not what a study writes; sum it up again"
        )
    return study


def _misfit(study: Mapping[str, Any]) -> str | None:
    wrong = misfit(study, _STUDY)
    if wrong is not None:
        return wrong
    rows, sets = study["rows"], len(study["sets"])
    names = [row["row"] for row in rows]
    if BASELINE not in names or len(set(names)) < len(names):
        return "rows"
    for at, row in enumerate(rows):
        if not row["reference"] == (row["rule"] is None) == (row["loss"] is None):
            return f"rows.{at}"
    for metric in METRICS:
        found = study["ranks"][metric]
        if found is not None and found["rank"].keys() != set(names):
            return f"ranks.{metric}.rank"
    if [(each["row"], each["against"]) for each in study["contrasts"]] != pairs(rows):
        return "contrasts"
    for at, each in enumerate(study["contrasts"]):
        for metric in METRICS:
            found, place = each["metrics"][metric], f"contrasts.{at}.metrics.{metric}"
            if len(found["by_set"]) != sets:
                return f"{place}.by_set"
            for name, value in _over_sets(found["by_set"]).items():
                there = found[name]
                if (there is None) != (value is None) or (
                    there is not None and not math.isclose(there, value, abs_tol=1e-9)
                ):
                    return f"{place}.{name}"
    return None


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _are_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(x) and x >= 1 for x in value.values())


def _is_ranked(value: Any) -> bool:
    return misfit(value, _RANKED) is None and (value["p"] is None) == (value["statistic"] is None)


_RANKED: dict[str, Any] = {
    "rank": _are_ranks, "sets": is_some, "cd": is_positive, "p": or_none(_is_share),
    "statistic": or_none(is_number),
}  # fmt: skip
_GAINS: dict[str, Any] = {
    "by_set": [is_interval], "p": or_none(_is_share),
    **dict.fromkeys(("gain", "median", "se"), or_none(is_number)),
    **dict.fromkeys(("win", "tie", "loss"), is_whole),
}  # fmt: skip
_STUDY: dict[str, Any] = {
    "sets": [{"name": is_text, "classes": is_some, "imbalance_factor": is_factor}],
    "rows": [{
        "row": is_text, "rule": or_none(is_text), "loss": or_none(is_text), "sampling": is_text,
        "reference": is_bool,
    }],
    "ranks": dict.fromkeys(METRICS, or_none(_is_ranked)),
    "contrasts": [{
        "row": is_text, "against": is_text, "metrics": dict.fromkeys(METRICS, _GAINS),
    }],
}  # fmt: skip


def summarise(sets: Sequence[Set]) -> dict[str, Any]:
    """Ranks of the rows that every set has, each row against others, and what gains go with.

    Returns:
      {"sets": facts of each, "rows": names, "ranks": {metric: see `study_statistics.ranks`},
      "contrasts": [{"row", "against", "metrics": {metric: {"gain", "median", "se", "p", "p_holm",
      "win", "tie", "loss", "by_set": [[mean, low, high]], "families": {"gain", "se", "p",
      "number"}}}}], "regressions": [{"row", "against",
      "metric", "terms", "r2", "sets"}]}. A gain is positive where the row is better, of
      log-loss, too. "families" has the same of one figure a family, the mean over its sets; its p
      is not corrected.
      "dropped": [{"row", "lacks": names of the sets without it}].
      "lost": [{"row", "set", "splits"}], where a row, as one that diverged, lacks a figure that
      another has: ranks are of the splits in which all have it, gains of those in which both do.
    """
    if not sets:
        raise RunError("no set is finished: there is nothing to sum up")
    held = [{row["row"]: row for row in one.summary["rows"]} for one in sets]
    lacks = {
        name: [one.name for one, its in zip(sets, held, strict=True) if name not in its]
        for name in dict.fromkeys(name for its in held for name in its)
    }
    rows = [row for name, row in held[0].items() if not lacks[name]]
    names = [row["row"] for row in rows]
    facts = [_facts(one, names) for one in sets]
    lines = [dict(iter(one.lines.sort_values("split").groupby("row"))) for one in sets]
    own_test = [one.summary["splits"]["own_test"] for one in sets]
    contrasts: list[dict[str, Any]] = []
    for row, other in pairs(rows):
        both = [(one[row], one[other]) for one in lines]
        gains = {metric: _gain(both, own_test, metric) for metric in METRICS}
        for of_metric in gains.values():
            of_metric["families"] = _of_families(of_metric["by_set"], [one.family for one in sets])
        contrasts.append({"row": row, "against": other, "metrics": gains})
    for metric in METRICS:
        adjusted = holm([each["metrics"][metric]["p"] for each in contrasts])
        for each, p in zip(contrasts, adjusted, strict=True):
            each["metrics"][metric]["p_holm"] = p
    return {
        "sets": facts,
        "rows": [{k: r[k] for k in ("row", "rule", "loss", "sampling", "reference")} for r in rows],
        "ranks": {metric: _ranks(sets, names, metric) for metric in METRICS},
        "contrasts": contrasts,
        "regressions": _regressions(facts, contrasts),
        "dropped": [{"row": name, "lacks": of} for name, of in lacks.items() if of],
        "lost": [each for one in sets for each in _lost(one, names)],
    }


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(row, row it is compared with): all with the baseline, and a rule with SGD of its loss."""
    found = [(row["row"], BASELINE) for row in rows if row["row"] != BASELINE]
    for row in rows:
        if row["reference"] or row["rule"] == "sgd":
            continue
        for other in rows:
            same = all(other[name] == row[name] for name in ("loss", "sampling"))
            if same and other["rule"] == "sgd" and not other["reference"]:
                found.append((row["row"], other["row"]))
    return list(dict.fromkeys(found))


def _facts(one: Set, names: Sequence[str]) -> dict[str, Any]:
    data = one.summary["data"]
    rows = {row["row"]: row for row in one.summary["rows"] if row["row"] in names}
    counts, easier = data["train_counts"], one.summary["about"].get("easier")
    return {
        "name": one.name, "family": one.family, "source": Path(data["source"]).name,
        "rows": data["rows"], "features": data["features"], "classes": data["classes"],
        "imbalance_factor": data["train_imbalance_factor"],
        "rows_a_class": round(sum(counts) / len(counts), 2), "rarest": min(counts),
        "splits": one.summary["splits"]["count"],
        "values": {name: {m: rows[name][m] for m in METRICS} for name in names},
        "best": one.summary["best"], "verdict": one.summary["verdict"],
        **({"easier": easier} if easier else {}),
    }  # fmt: skip


def _by_split(one: Set, names: Sequence[str], metric: str) -> pd.DataFrame:
    return one.lines.pivot(index="split", columns="row", values=metric)[list(names)]


def _lost(one: Set, names: Sequence[str]) -> list[dict[str, Any]]:
    lost = np.zeros((one.summary["splits"]["count"], len(names)), bool)
    for metric in METRICS:
        lacks = _by_split(one, names, metric).isna().to_numpy()
        lost |= lacks & ~lacks.all(axis=1, keepdims=True)
    return [
        {"row": name, "set": one.name, "splits": np.flatnonzero(of_row).tolist()}
        for name, of_row in zip(names, lost.T, strict=True)
        if of_row.any()
    ]


def _ranks(sets: Sequence[Set], names: Sequence[str], metric: str) -> Any:
    """Of the sets with a split in which every row has this figure; of such splits alone."""
    held = [_by_split(one, names, metric).dropna().to_numpy(float) for one in sets]
    means = [values.mean(axis=0) for values in held if len(values)]
    if not means or len(names) < 2:
        return None
    found = study_statistics.ranks(means, falling=metric in FALLING)
    return {**found, "rank": dict(zip(names, found["rank"], strict=True))}


def _gain(
    both: Sequence[tuple[pd.DataFrame, pd.DataFrame]], own_test: Sequence[bool], metric: str
) -> dict[str, Any]:
    """Of the lines of a row and of another, in each set."""
    sign = -1.0 if metric in FALLING else 1.0
    by_set: list[list[float | None]] = []
    for (mine, theirs), own in zip(both, own_test, strict=True):
        gains = sign * (mine[metric].to_numpy(float) - theirs[metric].to_numpy(float))
        seen = (mine["train"] + mine["val"]).to_numpy()
        by_set.append(list(interval(gains, seen, 0 if own else mine["test"].to_numpy())[:3]))
    return {**_over_sets(by_set), "by_set": by_set}


def _over_sets(by_set: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    means = [mean for mean, _, _ in by_set if mean is not None]
    sure = [(low, high) for _, low, high in by_set if low is not None and high is not None]
    win, loss = sum(low > 0 for low, _ in sure), sum(high < 0 for _, high in sure)
    return {
        "gain": float(np.mean(means)) if means else None,
        "median": float(np.median(means)) if means else None,
        "se": float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None,
        "p": study_statistics.signed_rank(means),
        "win": win, "tie": len(sure) - win - loss, "loss": loss,
    }  # fmt: skip


def _of_families(by_set: Sequence[Sequence[float | None]], families: Sequence[str]) -> Any:
    """Gain, its standard error and p of the families' means."""
    found: dict[str, list[float]] = {}
    for (mean, *_), family in zip(by_set, families, strict=True):
        if mean is not None:
            found.setdefault(family, []).append(mean)
    means = [float(np.mean(gains)) for gains in found.values()]
    return {
        "gain": float(np.mean(means)) if means else None,
        "se": float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None,
        "p": study_statistics.signed_rank(means),
        "number": len(means),
    }


def _regressions(
    facts: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of the gain of every rule over SGD with its loss, by threshold and by rank."""
    found = []
    for each in contrasts:
        for metric in ("balanced_accuracy", "auroc", "average_precision"):
            gains = [mean for mean, _, _ in each["metrics"][metric]["by_set"]]
            easy = [one["values"][BASELINE]["auroc"] for one in facts]
            use = [k for k in range(len(facts)) if None not in (gains[k], easy[k])]
            predictors = {
                "log10 imbalance factor": [math.log10(facts[k]["imbalance_factor"]) for k in use],
                "log10 rows a class": [math.log10(facts[k]["rows_a_class"]) for k in use],
                "log10 classes": [math.log10(facts[k]["classes"]) for k in use],
                f"AUROC of {BASELINE}": [easy[k] for k in use],
            }
            if len(use) < 3:
                continue
            fitted = study_statistics.regression([gains[k] for k in use], predictors)
            if fitted is not None:
                found.append(
                    {"row": each["row"], "against": each["against"], "metric": metric, **fitted}
                )
    return found


def table(study: Mapping[str, Any]) -> pd.DataFrame:
    """A line for each set and row: the set's facts, the row's figures and its gains."""
    baseline = {
        each["row"]: each["metrics"] for each in study["contrasts"] if each["against"] == BASELINE
    }
    lines = []
    for k, one in enumerate(study["sets"]):
        own = {
            name: one[name]
            for name in (
                "name", "family", "rows", "features", "classes", "imbalance_factor",
                "rows_a_class", "rarest", "splits",
            )
        }  # fmt: skip
        for name, values in one["values"].items():
            line = {**own, "row": name, **values}
            for metric in METRICS if name in baseline else ():
                ends = zip(
                    ("gain", "low", "high"), baseline[name][metric]["by_set"][k], strict=True
                )
                line |= {f"{end}_{metric}": value for end, value in ends}
            lines.append(line)
    return pd.DataFrame(lines)
