"""An analysis under way: items in files of OUT/parts, those that are there not measured again."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.analysis import figures, results
from experiments.analysis.measure import FORWARD, How, Item, Measure
from experiments.analysis.subjects import Subject, groups_of
from experiments.host import origin, outputs
from experiments.host.errors import RunError
from experiments.host.outputs import read_object
from experiments.host.progress import Counted
from experiments.host.stopping import StopRequest
from imbsam_jax import losses


class Work:
    """The items of one subject, those that are in their files already among them."""

    def __init__(
        self,
        subject: Subject,
        args: argparse.Namespace,
        eta: float,
        devices: list[Any],
        parts: Path,
    ):
        loss = _plain if args.loss == "cross_entropy" else _adjusted(tuple(subject.counts.tolist()))
        self.subject, self._parts = subject, parts
        self.groups = groups_of(subject, eta, args.per_class)
        if not {"head", "tail"} <= self.groups.keys():
            counts = subject.counts
            raise RunError(
                f"--eta {eta:g} leaves no {'tail' if 'head' in self.groups else 'head'}: choose it "
                f"between the counts, from {counts.min()} to {counts.max()}"
            )
        how = How(
            loss, eta, args.rho, args.iterations, args.probes, args.directions, args.steps,
            args.density, args.surface, args.batch_size,
        )  # fmt: skip
        self.measure = Measure(subject, self.groups, how, devices)
        self.items = list(self.measure.items())
        decided = {**{k: v for k, v in how._asdict().items() if k != "loss"}, "loss": args.loss}
        del decided["density"], decided["surface"], decided["batch_size"]
        self._key = digest(subject) + json.dumps([decided, sorted(self.groups)], sort_keys=True)
        self.found: dict[str, Any] = {}
        self.products, self.seconds = 0, 0.0

    def file(self, item: Item, more: Any = None) -> Path:
        text = json.dumps([self._key, item.name, more])
        return self._parts / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def there(self, item: Item) -> bool:
        return self.file(item).exists()

    def take(self, item: Item, more: Any = None) -> float | None:
        """Seconds that it took, None where it was there."""
        path = self.file(item, more)
        there = path.exists()
        if there:
            held = read_object(path)
        else:
            began = time.perf_counter()
            found = item.call()
            held = {"found": found, "seconds": time.perf_counter() - began}
            outputs.replace_text(path, json.dumps(held))
        self.found[item.name] = held["found"]
        if item.products:
            self.products += item.products
            self.seconds += held["seconds"]
        return None if there else held["seconds"]


def digest(subject: Subject) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((subject.variables, subject.train, subject.test.labels)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _plain(logits: Any, labels: Any) -> Any:
    return losses.cross_entropy(logits, labels)


_ADJUSTED: dict[Any, Any] = {}


def _adjusted(counts: tuple[int, ...]) -> Any:
    """One function for equal counts: programs are kept by it."""
    return _ADJUSTED.setdefault(counts, losses.logit_adjusted(np.array(counts)))


def measured(work: list[Work], args: argparse.Namespace, stop: StopRequest, out: Path) -> None:
    """Every item, those that others need the figures of last; then what is written."""
    axis = np.linspace(-args.reach, args.reach, args.surface) if args.surface else None
    passes = sum(item.passes for one in work for item in one.items if not one.there(item))
    passes += len(work) * args.iterations * args.density
    passes += sum(_surface_passes(one, args) for one in work)
    with Counted(max(1, round(passes)), "passes over the rows", "measuring") as shown:
        done = 0.0

        def take(one: Work, item: Item, more: Any = None) -> None:
            nonlocal done
            stop.check()
            took, before = one.take(item, more), done
            if took is not None or more is not None:
                done += item.passes
                shown.advance(round(done) - round(before), took or 0.0)

        for one in work:
            for item in one.items:
                take(one, item)
        grids = _grids(work) if args.density else {}
        for one in work:
            for group, grid in grids.items():
                share = one.measure.share(one.groups[group])
                products = args.iterations * args.density
                call = partial(one.measure.density, one.groups[group], grid)
                item = Item(f"density of {group}", products * share, products, call)
                take(one, item, [grid.tolist()[:2], len(grid), args.density])
            if axis is not None:
                call = partial(one.measure.surface, axis)
                take(one, Item("surface", _surface_passes(one, args), 0, call), axis.tolist())
    _write(work, out, args, grids, axis)


def _surface_passes(one: Work, args: argparse.Namespace) -> float:
    return FORWARD * args.surface**2 / len(one.subject.seeds)


_GRID = 1000


def _grids(work: list[Work]) -> dict[str, np.ndarray]:
    """A grid for head and tail that holds every subject's spectrum, and a little more."""
    grids = {}
    for group in ("head", "tail"):
        ends = [one.found[f"ends of {group}"] for one in work]
        low = min(min(end["smallest"]) for end in ends)
        high = max(max(end["largest"]) for end in ends)
        room = 0.05 * (high - low)
        grids[group] = np.linspace(low - room, high + room, _GRID)
    return grids


def _write(
    work: list[Work], out: Path, args: argparse.Namespace, grids: dict[str, Any], axis: Any
) -> None:
    records = [
        results.record(one.subject, seed, results.figures(one.subject, one.groups, one.found, seed))
        for one in work
        for seed in range(len(one.subject.seeds))
    ]
    summary = results.summarise(records)
    explained = results.explained(records)
    origin.write_flags(out, args)
    outputs.write_json(out / "records.json", records)
    products, seconds = sum(one.products for one in work), sum(one.seconds for one in work)
    cost = {"products": products, "seconds": seconds, "seconds_each": seconds / products}
    found = {"lines": summary, "explained": explained, "hessian_products": cost}
    outputs.write_json(out / "analysis.json", found)
    texts = [results.table(summary), results.differences(summary)]
    outputs.replace_text(out / "table.md", "\n\n".join(filter(None, texts)) + "\n")
    last = _last(work)
    shown: dict[str, Any] = {"rise": "worst" if args.steps else "sam"}
    if grids:
        shown["grids"] = {group: _digits(grid) for group, grid in grids.items()}
        shown["densities"] = {
            name: {
                group: _digits(np.mean(one.found[f"density of {group}"]["density"], axis=0))
                for group in grids
            }
            for name, one in last.items()
        }
    if axis is not None:
        shown["axis"] = axis.tolist()
        shown["surfaces"] = {
            name: _digits(one.found["surface"]["losses"]) for name, one in last.items()
        }
    outputs.replace_text(out / figures.SHOWN, json.dumps(shown) + "\n")
    figures.draw(out)
    print((out / "table.md").read_text())
    print(
        f"{products} products with a Hessian (of all seeds at once where they are in one folder), "
        f"{cost['seconds_each']:.2g} s each, with compilation"
    )
    print(f"analysis.json, records.json, table.md and figures are in {out}")


def _digits(values: Any) -> Any:
    """Of a figure, no more than can be seen."""
    return np.vectorize(lambda x: float(f"{x:.4g}"))(np.asarray(values)).tolist()


def _last(work: list[Work]) -> dict[str, Work]:
    """The last epoch of each line, and its first run."""
    found: dict[str, Work] = {}
    for one in sorted(work, key=lambda one: -one.subject.epoch):
        found.setdefault(results.name_of(one.subject.description), one)
    order = [results.name_of(one.subject.description) for one in work]
    return {name: found[name] for name in dict.fromkeys(order)}
