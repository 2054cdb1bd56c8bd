"""Finished folders of `compare`, made up: no network is trained."""

import numpy as np

from experiments.data.table import Table
from experiments.reports.compare_folder import BASELINE, Record, write
from experiments.reports.scores import calibration, group_accuracy, recalls, scores, shots

ROWS = (
    (BASELINE, "sgd", "cross_entropy", 0.0),
    ("sgd, logit_adjusted", "sgd", "logit_adjusted", 0.7),
    ("sam, cross_entropy", "sam", "cross_entropy", 0.1),
    ("imbsam, cross_entropy", "imbsam", "cross_entropy", 0.3),
    ("imbsam, logit_adjusted", "imbsam", "logit_adjusted", 0.8),
    ("gradient boosting", None, None, 0.4),
)


def table_of(counts, name="made", groups=None):
    import pandas as pd

    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    of = None if groups is None else (np.arange(len(labels)) % groups).astype(np.int32)
    return Table(
        name=name, columns=pd.DataFrame({"x": np.zeros(len(labels)), "z": 1.0}), labels=labels,
        class_names=tuple(f"class {c}" for c in range(len(counts))), groups=of,
        group_names=None if groups is None else tuple(f"group {g}" for g in range(groups)),
        notes=("3 rows without a label left out",), source=f"{name}.csv",
    )  # fmt: skip


def records_of(table, splits=4, seed=0, gain=1.0, rows=ROWS):
    """Predictions whose logits know more of the label the larger a row's number is."""
    draw = np.random.default_rng(seed)
    counts = table.class_counts()
    train = np.maximum(counts * 7 // 10, 1)
    tested = np.repeat(np.arange(len(counts)), np.maximum(counts - train, 1))
    found = []
    for split in range(splits):
        noise = draw.normal(size=(len(tested), len(counts)))
        for name, rule, loss, more in rows:
            own = 0.5 * draw.normal(size=noise.shape)
            rare = gain * more * np.arange(len(counts)) / len(counts)
            hot = tested[:, None] == np.arange(len(counts))
            logits = 1.2 * noise + own + 1.5 * hot * (1 + rare) + np.log(train) * (1 - 0.6 * more)
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            groups = (
                None if table.groups is None else np.arange(len(tested)) % len(table.group_names)
            )
            chosen = {"lr": float(draw.choice([0.03, 0.1])), "rho": None, "eta": None}
            if rule not in (None, "sgd"):
                chosen["rho"] = float(draw.choice([0.05, 0.1, 0.2]))
                chosen["eta"] = int(draw.choice([10, 30])) if rule == "imbsam" else None
            found.append(Record(
                row=name, rule=rule, loss=loss, sampling="" if rule is None else "shuffled",
                reference=rule is None, split=split, sizes=(int(train.sum()), 3, len(tested)),
                scores={k: float(v) for k, v in scores(
                    p, tested, thresholds=shots(train), counts=train, groups=groups).items()},
                recall=recalls(p, tested), bins=calibration(p, tested),
                chosen={} if rule is None else chosen, seconds=1.5,
                group_accuracy=None if groups is None
                else list(group_accuracy(p, tested, groups, len(table.group_names))),
            ))  # fmt: skip
    return found


ABOUT = {"seed": 0, "tuned": True, "model": {"name": "mlp", "width": 64}, "confidence": 0.95}


def folder_of(out, counts=(200, 60, 12), *, name="made", splits=4, groups=None, **more):
    """Writes runs.csv and summary.json into `out`; returns the summary."""
    table = table_of(counts, name, groups)
    train = np.maximum(table.class_counts() * 7 // 10, 1)
    out.mkdir(parents=True, exist_ok=True)
    return write(
        out, records_of(table, splits, **more), table,
        train_counts=train, thresholds=shots(train), about=ABOUT,
    )  # fmt: skip
