"""A study's tables in Markdown, as a README takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.host.cli import noun
from experiments.reports.compare_folder import BASELINE
from experiments.reports.figures import p_value
from experiments.reports.study_folder import DIGITS

Study = Mapping[str, Any]
_NAMES = {
    "balanced_accuracy": "balanced accuracy (points)", "macro_f1": "macro F1", "auroc": "AUROC",
    "average_precision": "average precision", "log_loss": "log-loss (nats, fallen)",
}  # fmt: skip


def markdown(study: Study) -> str:
    """Every table, under a heading each."""
    parts = [
        "# What helps, over " + noun(len(study["sets"]), "set"),
        _NOTE,
        "## Ranks and gains over " + BASELINE, _rows(study),
        "## What a rule adds to SGD with the same loss", _added(study),
        "## One figure a family", _families(study),
        "## By set", _sets(study),
        "## What the gain goes with", _regressions(study),
    ]  # fmt: skip
    told = easier(study)
    if told:
        parts += ["## Easier here than it will be", *(f"- {one}" for one in told)]
    without = [f"{one['name']}: {one['why']}" for one in study["failed"]] + left_out(study)
    if without:
        parts += ["## Left out", *(f"- {one}" for one in without)]
    return "\n\n".join(parts) + "\n"


def easier(study: Study) -> list[str]:
    """Of each set what compare noted: columns that tell the label, copies on both sides."""
    return [f"{one['name']}: {note}" for one in study["sets"] for note in one.get("easier", [])]


def left_out(study: Study) -> list[str]:
    """Of the sets that are summed up, what is not: rows that one lacks, splits without a figure."""
    return [
        f"{one['row']}: {', '.join(one['lacks'])} {'lacks' if len(one['lacks']) == 1 else 'lack'} "
        "the row"
        for one in study["dropped"]
    ] + [
        f"{one['row']} on {one['set']}: it lacks a figure of {noun(len(one['splits']), 'split')} "
        f"({', '.join(map(str, one['splits']))}), of which no row is ranked by that figure"
        for one in study["lost"]
    ]


_NOTE = (
    "Gains are means over sets ± their standard error (in brackets the median over sets), positive "
    "where the row is better. W/T/L: "
    "sets in which it is better, not told apart (the corrected resampled t interval holds 0), or "
    "worse; a set without an interval, as of a single split, or where a gain is the same in every "
    "split, is in none of them. p: Wilcoxon's signed ranks over sets, Holm-corrected over the "
    "comparisons of a metric. Rank 1 is the best."
)


def _rows(study: Study) -> str:
    metrics = ("balanced_accuracy", "auroc", "average_precision", "log_loss")
    against = {x["row"]: x["metrics"] for x in study["contrasts"] if x["against"] == BASELINE}
    body = []
    for row in study["rows"]:
        name = row["row"]
        cells = [name + " (reference)" * row["reference"]]
        for metric in metrics:
            found = study["ranks"][metric]
            cells.append("-" if found is None else f"{found['rank'][name]:.2f}")
            cells.append(_gain(against.get(name, {}).get(metric), metric))
        body.append(cells)
    heads = [
        "row",
        *(head for m in metrics for head in (f"rank, {_short(m)}", f"gain, {_NAMES[m]}; W/T/L; p")),
    ]
    tests = [
        f"{_short(m)}: Friedman's p {p_value(found['p'])}, critical difference {found['cd']:.2f} "
        f"of {noun(found['sets'], 'set')}"
        for m in metrics
        if (found := study["ranks"][m]) is not None
    ]
    return "\n\n".join([_table(heads, body), *["; ".join(tests) + "."] * bool(tests)])


def _added(study: Study) -> str:
    body = [
        [each["row"], each["against"], *(_gain(each["metrics"][m], m) for m in DIGITS)]
        for each in added(study)
    ]
    if not body:
        return "No rule beside SGD was compared."
    return _table(["row", "against", *(f"{_NAMES[m]}; W/T/L; p" for m in DIGITS)], body)


def _families(study: Study) -> str:
    """Sets of one source count as one: how far the figures above hang on them."""
    shared: dict[str, list[str]] = {}
    for one in study["sets"]:
        shared.setdefault(one["family"], []).append(one["name"])
    several = "; ".join(", ".join(names) for names in shared.values() if len(names) > 1)
    if not several:
        return "No two sets are of one family."
    metrics = ("balanced_accuracy", "auroc", "average_precision")
    shown = [each for each in study["contrasts"] if each["against"] == BASELINE]
    shown += [each for each in added(study) if each["against"] != BASELINE]
    body = []
    for each in shown:
        cells = [each["row"], each["against"]]
        for metric in metrics:
            found, digits = each["metrics"][metric]["families"], DIGITS[metric]
            gain, se = found["gain"], found["se"]
            text = "-" if gain is None else f"{gain:+.{digits}f}"
            text += "" if se is None else f" ± {se:.{digits}f}"
            cells.append(f"{text}; {p_value(found['p'])}")
        body.append(cells)
    note = (
        f"Means over {noun(len(shared), 'family', 'families')}, each the mean of its sets, ± "
        f"standard error over families; p of signed ranks, uncorrected. Of one family are: "
        f"{several}."
    )
    heads = ["row", "against", *(f"{_NAMES[m]}; p" for m in metrics)]
    return note + "\n\n" + _table(heads, body)


def added(study: Study) -> list[Mapping[str, Any]]:
    """The comparisons of a rule with SGD under its own loss and sampling."""
    rows = {row["row"]: row for row in study["rows"]}

    def is_one(each: Mapping[str, Any]) -> bool:
        mine, other = rows[each["row"]], rows[each["against"]]
        same = (mine["loss"], mine["sampling"]) == (other["loss"], other["sampling"])
        return same and not mine["reference"] and mine["rule"] != "sgd"

    return [each for each in study["contrasts"] if is_one(each)]


def _sets(study: Study) -> str:
    shown = [each for each in study["contrasts"] if each["against"] == BASELINE]
    shown += [each for each in added(study) if each["against"] != BASELINE]
    heads = ["set", "rows", "classes", "imbalance", "rarest", f"{BASELINE} (%)",
             *(f"{each['row']} − {each['against']}" for each in shown), "use"]  # fmt: skip
    order = sorted(range(len(study["sets"])), key=lambda k: study["sets"][k]["imbalance_factor"])
    body = []
    for k in order:
        one = study["sets"][k]
        base = one["values"][BASELINE]["balanced_accuracy"]
        body.append([
            one["name"], one["rows"], one["classes"], f"{one['imbalance_factor']:.1f}",
            one["rarest"], "-" if base is None else f"{base:.1f}",
            *(_interval(each["metrics"]["balanced_accuracy"]["by_set"][k]) for each in shown),
            one["best"] or "-",
        ])  # fmt: skip
    note = "Balanced accuracy in percent, differences in points with 95% intervals."
    return note + "\n\n" + _table(heads, body)


def _regressions(study: Study) -> str:
    own = {(each["row"], each["against"]) for each in added(study)}
    found = [each for each in study["regressions"] if (each["row"], each["against"]) in own]
    if not found:
        return "Too few sets to tell."
    names = list(dict.fromkeys(name for each in found for name in each["terms"]))
    body = [
        [f"{each['row']} − {each['against']}", _short(each["metric"]),
         *(_term(each["terms"].get(name)) for name in names),
         "-" if each["r2"] is None else f"{each['r2']:.2f}", each["sets"]]
        for each in found
    ]  # fmt: skip
    note = (
        "Least squares over sets, predictors centred: coefficient ± standard error (HC3); * p at "
        "most 0.05, uncorrected. What hangs on one set alone has neither. Balanced accuracy in "
        "points, the others from 0 to 1."
    )
    return note + "\n\n" + _table(["gain", "metric", *names, "R²", "sets"], body)


def _term(term: Mapping[str, Any] | None) -> str:
    if term is None:
        return "-"
    star = "*" if term["p"] is not None and term["p"] <= 0.05 else ""
    error = "" if term["se"] is None else f" ± {term['se']:.2g}"
    return f"{term['coefficient']:+.3g}{error}{star}"


def _gain(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None or found["gain"] is None:
        return "-"
    digits = DIGITS[metric]
    text = f"{found['gain']:+.{digits}f}"
    text += "" if found["se"] is None else f" ± {found['se']:.{digits}f}"
    text += f" ({found['median']:+.{digits}f})"
    return f"{text}; {found['win']}/{found['tie']}/{found['loss']}; {p_value(found['p_holm'])}"


def _interval(found: Sequence[float | None]) -> str:
    mean, low, high = found
    if mean is None:
        return "-"
    return f"{mean:+.1f}" + ("" if low is None else f" ({low:+.1f}, {high:+.1f})")


def _short(metric: str) -> str:
    return _NAMES[metric].split(" (")[0]


def _table(heads: Iterable[Any], body: Iterable[Iterable[Any]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
