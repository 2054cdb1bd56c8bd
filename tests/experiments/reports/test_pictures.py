"""Every figure line by line, beside what it held when it was looked at: pictures/NAME.txt.

A figure that is to look otherwise fails here; its new text is in the test's folder, to be put in
the old one's place once the picture has been looked at.
"""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import pictures
import recorded
from experiments.reports import compare_figures, drawing, plots, study_figures
from experiments.reports.compare_folder import BASELINE

KEPT = Path(__file__).with_name("pictures")
SHOTS = (100, 20)
COUNTS = np.array([5, 500, 30, 200, 10, 100, 20, 101, 19, 60])
MANY = np.arange(301, 0, -1)
SPLITS = ("all", "many", "medium", "few")
RISING = np.linspace(10, 55, 10)


def epochs(number):
    return [
        {"epoch": e, "train_loss": 3.0 / e, "test_all": 20.0 + e, "test_many": 40.0 + e,
         "test_medium": 0.0, "test_few": None if e == 2 else 0.5}
        for e in range(1, number + 1)
    ]  # fmt: skip


def by_epoch(number, low, *, errors=True):
    at = np.arange(1.0, number + 1)
    found = {"all": low + at, "few": low / 2 + at}
    return at, found | {"all_se": at / 10} if errors else found


def gain(title, counts, **more):
    counts = np.asarray(counts)
    return {"title": title, "counts": counts, "gain": np.sqrt(counts) - 4, "eta": None} | more


def swept(x, mean, chosen=None):
    return {
        "x": x, "mean": {split: [v + k for v in mean] for k, split in enumerate(SPLITS)},
        "se": {split: [0.5] * len(x) for split in SPLITS}, "chosen": chosen,
    }  # fmt: skip


LEVELS = {"all": 50.0, "many": 60.0, "medium": 40.0, "few": 10.0}
GAINS = {
    "all": {"sam": (1.5, 0.25), "imbsam": (-2.0, None), "gsa": (0.25, 0.5)},
    "few": {"sam": (None, None), "imbsam": (4.0, 0.5), "gsa": (1.0, 0.0)},
}
PLOTS = {
    "a_run": lambda: plots.per_class("x", "imbsam on it", COUNTS, COUNTS % 7, COUNTS, SHOTS),
    "a_run_of_30": lambda: plots.per_class(
        "x", "t", np.arange(30) // 6 + 1, np.arange(30) % 4 // 2 + 1, np.arange(30) % 4 + 1
    ),
    "a_run_of_301": lambda: plots.per_class(
        "x", "a long title " * 9, MANY, MANY % 5, np.full(301, 5), (250, 60)
    ),
    "epochs": lambda: plots.learning_curves("x", "sam on it", epochs(9), SHOTS),
    "epochs_30": lambda: plots.learning_curves("x", "t", epochs(30)),
    "one_epoch": lambda: plots.learning_curves("x", "t", epochs(1)),
    "classes": lambda: plots.classes_by_rule(
        "x", COUNTS, {"ce": {"sgd": RISING, "sam": RISING + 5}, "la": {"sam": RISING}}, SHOTS, 20,
        {"ce": {"sgd": RISING / 10}},
    ),
    "curves": lambda: plots.curves_by_rule(
        "x", {"": {"sgd": by_epoch(17, 10), "sam": by_epoch(17, 40)}}, 3
    ),
    "curves_of_losses": lambda: plots.curves_by_rule(
        "x", {k: {"sgd": by_epoch(3, 10, errors=False)} for k in ("ce", "la")}
    ),
    "gains": lambda: plots.gains_by_rule("x", GAINS, "SGD's with cross_entropy", 20),
    "gains_of_one_seed": lambda: plots.gains_by_rule("x", GAINS, "SGD's", 1),
    "gain_of_classes": lambda: plots.gain_per_class(
        "x",
        [gain("imbsam", COUNTS, eta=20.0, se=np.arange(10) / 8, thresholds=SHOTS),
         gain("gsa", COUNTS)],
    ),
    "gain_of_40": lambda: plots.gain_per_class(
        "x", [gain("sam", 8 * (np.arange(40) // 4), eta=8.5, se=np.arange(40))]
    ),
    "sweep": lambda: plots.sweep(
        "x", "rho", {"eta 8": swept([0.02, 0.1, 0.8], [51, 52, 53], 1),
                     "eta 20": swept([0.02, 0.1], [54, 55])}, LEVELS,
    ),
    "sweep_of_near": lambda: plots.sweep(
        "x", "eta", {"eta": swept([0.1, 0.2, 0.9], [51, 52, 53])}, LEVELS, sgd_chosen=True
    ),
}  # fmt: skip


# ---- of a comparison --------------------------------------------------------------------------


def row(name, rule, loss, accuracy, **more):
    found = {
        "row": name, "rule": rule, "loss": loss, "sampling": "shuffled", "reference": rule is None,
        "balanced_accuracy": accuracy, "p_holm": 0.05, "recall": [90.0, accuracy, None],
        "calibration": {"count": [1, 0, 15], "confidence": [0.3, None, 0.9],
                        "accuracy": [0.2, None, 0.8]},
        "calibration_error": 0.125, "chosen": {},
        "difference": {"balanced_accuracy": [accuracy - 60, accuracy - 61, accuracy - 58],
                       "auroc": [0.01, None, None]},
    }  # fmt: skip
    return found | more


BASE = row(BASELINE, "sgd", "cross_entropy", 60.0, chosen={"lr": [0.1, 0.1, 0.03]})
del BASE["difference"]
NONE = {"balanced_accuracy": [None] * 3, "auroc": [-0.0004, -0.1, 0.2]}
ROWS = [
    BASE,
    row("sgd, la", "sgd", "la", 64.0, p_holm=0.051, chosen={"lr": [0.1, 1, 0.3], "tau": [1, 2, 1]}),
    row("sam", "sam", "cross_entropy", 62.0, p_holm=None, calibration_error=None,
        chosen={"weight_decay": [0.0, None, 0.001], "rho": [0.2, 0.2, 0.2]}),
    row("imbsam", "imbsam", "cross_entropy", 65.0, chosen={"eta": [20, 20, 100]}),
    row("trees", None, None, 61.0),
    row("a tree", None, None, 59.5, difference=NONE),
]  # fmt: skip


def comparison(classes=3, rows=ROWS, name="a set", tuned=True):
    return {
        "rows": rows, "best": None, "splits": {"count": 3}, "about": {"tuned": tuned},
        "data": {"name": name, "classes": classes, "train_counts": [*range(50, 50 - classes, -1)],
                 "class_names": [f"{c} is a class of a name" for c in range(classes)]},
        "thresholds": {"many_above": 49, "few_below": 49},
    }  # fmt: skip


def wide(classes):
    return comparison(classes, [BASE | {"recall": [*np.linspace(90, 20, classes)]}])


LONG = comparison(rows=ROWS * 3, name="a set of a long name " * 5, tuned=False)
COMPARED = {
    "compare_differences": ("differences", comparison()),
    "compare_differences_of_18": ("differences", LONG),
    "compare_differences_of_none": ("differences", comparison(rows=[BASE])),
    "compare_recall": ("recall", comparison()),
    "compare_recall_of_4": ("recall", wide(4)),
    "compare_recall_of_15": ("recall", wide(15)),
    "compare_recall_of_70": ("recall", wide(70)),
    "compare_reliability": ("reliability", comparison()),
    "compare_chosen": ("chosen", comparison()),
    "compare_chosen_of_18": ("chosen", LONG),
    "compare_chosen_of_1": ("chosen", comparison(rows=[BASE])),
}


# ---- of a study -------------------------------------------------------------------------------

SETS = [
    {"name": "small", "classes": 2, "imbalance_factor": 3.0},
    {"name": "large", "classes": 5, "imbalance_factor": 90.0},
    {"name": "one split", "classes": 3, "imbalance_factor": 10.0},
    {"name": "none", "classes": 4, "imbalance_factor": 20.0},
]
POINTS = [[2.0, 1.0, 3.0], [-4.0, -6.0, -1.0], [1.0, None, None], [None, None, None]]
LEVEL = [[0.5, 0.0, 2.0], [0.0, -0.5, 0.0], [0.0, -1.0, 0.5], [None, None, None]]


def contrast(name, points, gain=None, se=None):
    of = {"by_set": points, "gain": gain, "se": se}
    return {"row": name, "against": "sgd", "metrics": {"balanced_accuracy": of, "auroc": of}}


STUDY = {"sets": SETS}
SHOWN = [contrast("sam", POINTS, 0.5, 0.75), contrast("imbsam", LEVEL, 0.25), contrast("x", POINTS)]
RANKED = {"rank": {"a": 1.25, "b": 2.0, "c": 2.75}, "cd": 0.75, "p": 0.0125, "sets": 7}
STUDIED = {
    "study_ranks": lambda: study_figures.ranks("x", RANKED, "AUROC"),
    "study_ranks_without_p": lambda: study_figures.ranks("x", RANKED | {"p": None}, "accuracy"),
    "study_gains": lambda: study_figures.gains("x", STUDY, SHOWN, "auroc", "0 to 1"),
    "study_gains_of_5": lambda: study_figures.gains(
        "x", STUDY, [*SHOWN, *SHOWN[:2]], "balanced_accuracy", "points"
    ),
    "study_forest": lambda: study_figures.forest("x", STUDY, SHOWN),
    "study_forest_of_9": lambda: study_figures.forest("x", STUDY, SHOWN * 3),
}


# ---- what all are drawn with -------------------------------------------------------------------


def ends():
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    for k, last in enumerate([0, 0.8, 10, 20, 30, 40, 50, 60, 70]):
        axis.plot([0, 1], [k, last], label=f"rule {k}", **drawing.style(k))
    drawing.label_ends(axis, axis.lines)
    drawing.legend(figure, [axis])
    return drawing.save(figure, "x")


DRAWINGS = (
    PLOTS
    | {
        name: lambda plot=plot, of=of: getattr(compare_figures, plot)("x", of)
        for name, (plot, of) in COMPARED.items()
    }
    | STUDIED | {"ends": ends}
)  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_holds_what_it_was_looked_at_with(name, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: saved.append(figure) or figure)
    DRAWINGS[name]()
    (figure,) = saved
    recorded.check(KEPT / f"{name}.txt", pictures.told(figure), tmp_path)


def test_every_kept_text_is_of_a_figure():
    assert {path.stem for path in KEPT.iterdir()} == DRAWINGS.keys()
