"""Semi-supervised anomaly detection: DevNet and DeepSAD under every rule.

    python -m experiments.anomaly --out runs/anomaly                      # scikit-learn's own data
    python -m experiments.anomaly --data-dir DIR --label-ratio 0.01 0.05 0.1 0.25 0.5 --out runs/x

The second application of the ImbSAM paper (section 4.2): the labelled anomalies are the tail, every
other training example is the head. Networks, losses and splits are ADBench's; all runs of a method
and a rule are trained by one compiled program, mapped over runs and spread over the devices.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from experiments.anomaly import networks
from experiments.anomaly.program import OPTIMIZERS, RULES
from experiments.anomaly.report import (
    PAPER_RATIO,
    families,
    show,
    summarise,
    write_runs,
)
from experiments.anomaly.tables import PROTOCOLS, load_tables
from experiments.anomaly.training import (
    METHODS,
    Case,
    Result,
    draw_cases,
    train,
)
from experiments.host import cli, locks, origin, outputs
from experiments.host.needs import always, one_of
from experiments.host.progress import Counted


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Train DevNet and DeepSAD on anomaly data under several rules.",
        {
            **always(
                "data_dir",
                "datasets",
                "protocol",
                "method",
                "rule",
                "seeds",
                "optimizer",
                "lr",
                "epochs",
                "out",
                "overwrite",
                "save",
            ),
            "label_ratio": (one_of("protocol", ["adbench", "nodup", "clean"]),),
            "rho": (one_of("rule", ["sam", "imbsam"]),),
        },
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir", metavar="DIR", type=cli.text, default=os.environ.get("ADBENCH_DIR") or None,
        help="folder of NAME.npz files with X real[n, d] and y [n], 1 for an anomaly; default the "
        "variable ADBENCH_DIR, then scikit-learn's digits (one digit is the anomaly) and breast "
        "cancer",
    )  # fmt: skip
    data.add_argument(
        "--datasets", metavar="NAME", type=cli.text, nargs="+", default=None,
        help="data sets, without .npz; None takes all of the folder",
    )  # fmt: skip
    data.add_argument(
        "--protocol", nargs="+", default=["adbench"], choices=PROTOCOLS,
        help="adbench: as published (fewer than 1000 rows are resampled before the split, so that "
        "copies are in train and test); nodup: without resampling; clean: as adbench, anomalies "
        "without a label leave training; full: as adbench, every training anomaly is labelled "
        "whatever --label-ratio says, once, and reported with label ratio 1",
    )  # fmt: skip
    data.add_argument(
        "--label-ratio", metavar="R", type=cli.number(over=0, most=1), nargs="+",
        default=[PAPER_RATIO], help="part of the training anomalies that are labelled",
    )  # fmt: skip

    method = parser.add_argument_group("method")
    method.add_argument(
        "--method", nargs="+", default=list(METHODS), choices=METHODS, help="networks and losses"
    )
    method.add_argument(
        "--rule", nargs="+", default=list(RULES), choices=RULES,
        help="differences are paired with sgd; imbsam perturbs the labelled anomalies alone",
    )  # fmt: skip
    method.add_argument(
        "--rho", type=cli.number(least=0), default=0.05,
        help="radius of sam and imbsam, in parameter units",
    )  # fmt: skip

    training = parser.add_argument_group("training")
    training.add_argument(
        "--seeds", metavar="S", type=cli.number(least=0, most=2**32 - 20001, whole=True),
        nargs="+", default=[0, 1, 2],
        help="of split, initial weights and batches; a run each",
    )  # fmt: skip
    training.add_argument(
        "--optimizer", default="sgd", choices=OPTIMIZERS,
        help="sgd: momentum 0.9; adam: betas 0.9 and 0.999; rmsprop: decay 0.9, each tensor's "
        "gradient clipped to norm 1 after weight decay, as in Keras",
    )  # fmt: skip
    training.add_argument(
        "--lr", type=cli.number(over=0), default=1e-3,
        help="learning rate, constant; with sgd at 1e-2 DeepSAD diverges under sam, imbsam",
    )  # fmt: skip
    training.add_argument(
        "--epochs", type=cli.counted(), default=50,
        help="DevNet: 20 steps of 128 rows each; DeepSAD: one pass over the rows in batches of 128",
    )  # fmt: skip

    running = parser.add_argument_group("running")
    running.add_argument(
        "--out", metavar="DIR", type=cli.text, default="runs/anomaly",
        help="folder for runs.csv, summary.json, config.json and curves_PROTOCOL.png",
    )  # fmt: skip
    running.add_argument(
        "--overwrite", action="store_true", help="replace the runs.csv that --out holds"
    )
    running.add_argument(
        "--save", action="store_true",
        help="keep the network of every run in OUT/params, by its place in runs.csv, for "
        "experiments.analyse",
    )  # fmt: skip
    return parser


# Of config.json, what decides no network; the data are known by their rows.
_FREE = ("data_dir", "out", "overwrite", "save")


def main(args: argparse.Namespace) -> None:
    from experiments.anomaly import curves  # with matplotlib, which --help need not wait for

    began = time.perf_counter()
    cli.refuse_twice(args, "method", "rule", "protocol", "seeds", "label_ratio", "datasets")
    out = Path(args.out)
    locks.refuse_to_fill(out, args.overwrite)
    tables = load_tables(args.data_dir, args.datasets)
    cases = draw_cases(
        tables, seeds=args.seeds, label_ratios=args.label_ratio, protocols=args.protocol
    )
    cli.use_compilation_cache()
    names = [table.name for table in tables]
    with locks.Lock(out):
        kept: dict[tuple[Any, ...], Any] | None = {} if args.save else None
        results, seconds = _train(args, names, cases, kept)
        summary, quoted = summarise(results, args.rule), families(results)
        seconds["total"] = time.perf_counter() - began
        asked = _as_asked(args, names)
        with outputs.writing(out):
            outputs.clear_tables(out)
            if kept is not None:
                flags = {k: v for k, v in vars(asked).items() if k not in _FREE}
                networks.save(out, results, kept, cases, flags)
            write_runs(out / "runs.csv", results)
            origin.write_flags(out, asked)
            for protocol in args.protocol:
                curves.draw(out / f"curves_{protocol}.png", summary, protocol)
            whole = {"groups": summary, "paper_table_4": quoted, "seconds": seconds}
            outputs.write_json(out / "summary.json", whole)
    what = "" if args.rule == ["sgd"] else f", rho {args.rho:g}"
    title = (
        f"{cli.noun(len(names), 'data set')}, {cli.noun(len(args.seeds), 'seed')}, "
        f"{args.optimizer}, lr {args.lr:g}"
    )
    show(summary, quoted, f"{title}{what}, {cli.noun(args.epochs, 'epoch')}")
    waited = sum(seconds[method]["compiling"] for method in args.method)
    print(
        f"{cli.noun(len(results), 'run')} in {seconds['total']:.1f} s, {waited:.1f} s of it "
        f"waiting for the compiler; runs.csv, summary.json and curves are in {out}"
    )


def _train(
    args: argparse.Namespace, names: list[str], cases: list[Case], kept: Any
) -> tuple[list[Result], dict[str, Any]]:
    """(the results in the order of the flags' values, seconds by method)."""
    results: list[Result] = []
    seconds: dict[str, Any] = {}
    for method in args.method:
        start = time.perf_counter()
        with Counted(len(cases) * len(args.rule), "runs", method) as shown:
            found, spent = train(
                cases, method=method, rules=args.rule, optimizer=args.optimizer, lr=args.lr,
                rho=args.rho, epochs=args.epochs, advance=shown.advance, kept=kept,
            )  # fmt: skip
        results += found
        seconds[method] = {**spent._asdict(), "total": time.perf_counter() - start}
    results.sort(
        key=lambda r: (
            args.protocol.index(r.protocol), r.label_ratio, args.method.index(r.method),
            names.index(r.dataset), args.rule.index(r.rule), args.seeds.index(r.seed),
        )
    )  # fmt: skip
    return results, seconds


def _as_asked(args: argparse.Namespace, names: list[str]) -> argparse.Namespace:
    """The flags for config.json: data sets by name, and of their folder the name alone.

    Where it lies on this machine is nobody else's business.
    """
    folder = Path(args.data_dir).resolve().name if args.data_dir else None
    return argparse.Namespace(**{**vars(args), "data_dir": folder, "datasets": names})
