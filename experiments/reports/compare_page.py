"""report.html of a comparison: one page that needs no other file, no network and no JavaScript."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.host import outputs
from experiments.host.cli import noun
from experiments.reports import compare_figures, compare_folder
from experiments.reports.compare_figures import baseline
from experiments.reports.figures import p_value
from experiments.reports.scores import PERCENT

PAGE = "report.html"
COLUMNS = {
    "balanced_accuracy": "balanced accuracy (%)", "macro_f1": "macro F1", "auroc": "AUROC",
    "average_precision": "average precision", "log_loss": "log-loss (nats)",
    "calibration_error": "calibration error", "worst_recall": "worst recall (%)",
    "worst_group": "worst group (%)", "logit_middle": "middle of the log odds (nats)",
    "logit_gap": "gap of the log odds (nats)",
    "many": "many (%)", "medium": "medium (%)", "few": "few (%)",
}  # fmt: skip
_CAPTIONS = {
    "differences.png": "Difference of each row to the baseline, paired by split. * beside a name: "
    "Holm-corrected p of balanced accuracy at most 0.05.",
    "recall.png": "Recall of each class, the largest first.",
    "reliability.png": "Reliability: how often the rows of a bin were right, by how sure.",
    "chosen.png": "The settings that each split was trained with.",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #111; background: #fff }
table { border-collapse: collapse; font-size: 13px; margin: .8rem 0 }
.wide { overflow-x: auto } th, td { padding: .25rem .55rem; text-align: right; border-bottom: 1px
solid #ccc; white-space: nowrap } th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #111; vertical-align: bottom; white-space: normal }
.said { font-size: 17px; border-left: 4px solid #111; padding: .3rem .9rem; background: #f2f2f2 }
.use td { font-weight: bold } img { max-width: 100%; height: auto }
figcaption, .small { color: #444; font-size: 13px } figure { margin: 1.2rem 0 }
"""


def draw(out: Path) -> list[Path]:
    """The figures and the page of a finished folder, of summary.json and runs.csv; which."""
    summary, lines = compare_folder.read(out)
    with outputs.writing(out):
        for name in (PAGE, *compare_figures.FIGURES):  # the page last: it means a whole folder
            (out / name).unlink(missing_ok=True)  # of another run
    made = compare_figures.draw(out, summary)
    images = {path.name: path.read_bytes() for path in made}
    outputs.replace_text(out / PAGE, page(summary, len(lines), images))
    return [*made, out / PAGE]


def page(summary: Mapping[str, Any], runs: int, images: Mapping[str, bytes]) -> str:
    """The page's HTML.

    Args:
      summary: as `compare_folder.write` writes it.
      runs: lines of runs.csv.
      images: PNGs by name.
    """
    name = _text(summary["data"]["name"])
    parts = [
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Which rule helps on {name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Which rule helps on {name}</h1>",
        f'<p class="said">{_text(summary["verdict"])}</p>', _about_data(summary),
        "<h2>Every row</h2>", _rows(summary), _figure("differences.png", images),
        "<h2>By class</h2>", _figure("recall.png", images), _classes(summary), _by_group(summary),
        "<h2>Calibration</h2>", _figure("reliability.png", images),
        "<h2>Settings</h2>", _figure("chosen.png", images), _chosen(summary),
        _how(summary, runs), "</body></html>",
    ]  # fmt: skip
    return "\n".join(filter(None, parts)) + "\n"


def _about_data(summary: Mapping[str, Any]) -> str:
    data, splits = summary["data"], summary["splits"]
    sizes = ", ".join(
        f"{_span(splits[part])} {what}"
        for part, what in (("train", "to train on"), ("val", "to choose by"), ("test", "to test"))
    )
    said = (
        f"{data['rows']:,} rows, {data['features']} columns, {data['classes']} classes, largest "
        f"over smallest {data['imbalance_factor']:g} "
        f"({data['train_imbalance_factor']:g} in the rows trained on). "
        f"{noun(splits['count'], 'split')} of {sizes} rows"
        f"{', tested on a file of its own' if splits['own_test'] else ''}."
    )
    notes = "".join(f"<li>{_text(note)}</li>" for note in data["notes"])
    return f"<p>{_text(said)}</p>" + (f"<ul>{notes}</ul>" if notes else "")


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _rows(summary: Mapping[str, Any]) -> str:
    shown = {name: head for name, head in COLUMNS.items() if _any(summary, name)}
    body = []
    for row in sorted(summary["rows"], key=_rank):
        figures = [_number(row[name], name) for name in shown]
        difference = row.get("difference", {}).get("balanced_accuracy")
        cells = [row["row"] + (" (reference)" if row["reference"] else ""), *figures]
        cells += [_interval(difference), p_value(row["p_holm"]), f"{row['seconds']:.1f}"]
        body.append((cells, "use" if row["row"] == summary["best"] else ""))
    heads = ["", *shown.values(), f"− {baseline(summary)['row']} (points, 95% interval)",
             "Holm's p", "seconds"]  # fmt: skip
    note = (
        "Means over splits. Many, medium and few: classes with over "
        f"{summary['thresholds']['many_above']}, between, and under "
        f"{summary['thresholds']['few_below']} training rows. AUROC and average precision need no "
        "threshold: a loss that moves thresholds leaves them where they are. "
        f"{compare_folder.of_intervals(summary)} p is corrected for the number of methods."
    )
    return _table(heads, body) + f'<p class="small">{_text(note)}</p>'


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    value = row["balanced_accuracy"]
    return row["reference"], -(-1.0 if value is None else value)


def _any(summary: Mapping[str, Any], name: str) -> bool:
    return any(row.get(name) is not None for row in summary["rows"])


def _classes(summary: Mapping[str, Any]) -> str:
    data, rows = summary["data"], summary["rows"]
    heads = ["class", "rows", "training rows", *(row["row"] for row in rows)]
    body = [
        ([name, str(data["class_counts"][c]), str(data["train_counts"][c]),
          *(_number(row["recall"][c], "few") for row in rows)], "")
        for c, name in enumerate(data["class_names"])
    ]  # fmt: skip
    return f"<details><summary>Recall (%) of every class</summary>{_table(heads, body)}</details>"


def _by_group(summary: Mapping[str, Any]) -> str:
    group, rows = summary["data"]["group"], summary["rows"]
    if group is None:
        return ""
    body = [
        ([name, str(group["counts"][g]),
          *(_number(row["group_accuracy"][g], "few") for row in rows)], "")
        for g, name in enumerate(group["names"])
    ]  # fmt: skip
    return "<h2>By group</h2><p>Accuracy (%)</p>" + _table(
        ["group", "rows", *(row["row"] for row in rows)], body
    )


def _chosen(summary: Mapping[str, Any]) -> str:
    body = [
        ([row["row"], name, ", ".join("-" if x is None else _plain(x) for x in values)], "")
        for row in summary["rows"]
        for name, values in row["chosen"].items()
    ]
    if not body:
        return ""
    table = _table(["row", "setting", "by split"], body)
    return f"<details><summary>Every setting by split</summary>{table}</details>"


def _how(summary: Mapping[str, Any], runs: int) -> str:
    body = [([name, _plain(value)], "") for name, value in summary["about"].items()]
    return (
        "<details><summary>How it was made</summary>"
        + _table(["", ""], body)
        + f'<p class="small">Drawn from summary.json and the {runs} lines of runs.csv: '
        "<code>python -m experiments.redraw</code> draws it again.</p></details>"
    )


def _table(heads: Iterable[str], body: Iterable[tuple[Sequence[str], str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    rows = "".join(
        f"<tr{f' class={kind}' if kind else ''}>"
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, kind in body
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _figure(name: str, images: Mapping[str, bytes]) -> str:
    if name not in images:
        return ""
    data, caption = base64.b64encode(images[name]).decode(), _text(_CAPTIONS[name])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if metric in PERCENT else f"{value:.3f}"


def _interval(found: Sequence[float | None] | None) -> str:
    if found is None or found[0] is None:
        return "-"
    mean, low, high = found
    return f"{mean:+.1f}" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(x)}" for name, x in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))
