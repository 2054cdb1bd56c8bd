"""Reports and run folders as the trainer writes them, made by hand."""

import csv
import json

from experiments import report
from experiments.reports import grouping

PAPER = {"model": "resnet34_3x3", "epochs": 200, "batch_size": 64}
PAPER |= {"lr": 0.01, "schedule": "cosine-prestep", "weight_decay": 5e-3, "momentum": 0.9}
RATIO = {"model": "resnet32", "batch_size": 128, "lr": 0.1, "schedule": "cosine"}
RATIO |= {"weight_decay": 2e-4}
IMBSAM = {"rho": 0.05, "eta": 100, "tail_scale": 1.0, "strict": False}
AS_PAPER = {"rule": "imbsam", "rule_args": IMBSAM}
SETTINGS = ("epochs", "batch_size", "lr", "schedule", "weight_decay", "momentum", "seed")


def make(seed=0, rule="sgd", all=50.0, rule_args=None, **changes):
    """A report as the trainer writes it, of the paper's protocol unless changed."""
    values = {**PAPER, "seed": seed, **changes}
    settings = {"precision": "float32", "steps_per_call": 1, **values.pop("settings", {})}
    settings |= {name: values[name] for name in SETTINGS}
    splits = {"many": all + 20, "medium": all, "few": all - 20, "all": all}
    return {
        "experiment": "cifar_lt",
        "dataset": "cifar100",
        "imbalance_factor": 100.0,
        "subset": "first",
        "loss": "cross_entropy",
        "rule": rule,
        "rule_args": rule_args or {},
        **splits,
        "best_epoch_flip": {**{k: v + 1 for k, v in splits.items()}, "epoch": 9},
        "step_ms": 100.0 + seed,
        "flops_ratio_to_sgd": 1.0,
        "train_examples": 10847,
        **{k: v for k, v in values.items() if k not in SETTINGS or k in ("epochs", "batch_size")},
        "seed": seed,
        "settings": settings,
    }


def save(folder, *args, accuracies=None, counts=(500, 100, 5), **changes):
    """A run folder; accuracies that are given must have the mean of the report."""
    folder.mkdir(parents=True)
    report = make(*args, **{"train_examples": sum(counts), **changes})
    (folder / "report.json").write_text(json.dumps(report))
    accuracies = accuracies or [report[split] for split in ("many", "medium", "few")]
    with open(folder / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_examples", "test_examples", "correct", "accuracy"])
        for c, (n, accuracy) in enumerate(zip(counts, accuracies, strict=True)):
            tested = [0, 0, ""] if accuracy == "" else [1000, int(10 * accuracy), f"{accuracy:.4f}"]
            writer.writerow([c, "", n, *tested])
    return folder


def facts(**changes):
    return grouping.grouped([make(**changes)])[0].facts


def run_command(*args):
    report.main(report.arguments().parse_args([str(arg) for arg in args]))
