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

from experiments.analysis import between, figures, results
from experiments.analysis.measure import FORWARD, How, Item, Measure
from experiments.analysis.subjects import Subject, groups_of
from experiments.host import origin, outputs
from experiments.host.errors import RunError
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
            loss, args.rho, args.iterations, args.probes, args.directions, args.steps,
            args.density, args.surface, args.batch_size, args.ends and tuple(args.ends),
        )  # fmt: skip
        self.measure = Measure(subject, self.groups, how, devices)
        self.items = list(self.measure.items())
        decided = {**{k: v for k, v in how._asdict().items() if k != "loss"}, "loss": args.loss}
        for name in ("density", "surface", "batch_size", "ends"):
            del decided[name]
        masks = {name: group.astype(int).tolist() for name, group in self.groups.items()}
        self._key = digest(subject) + json.dumps([decided, masks], sort_keys=True)
        self.found: dict[str, Any] = {}
        self.products, self.seconds = 0, 0.0
        self.spent = [0.0, 0.0]  # seconds and CPU seconds of all items

    def file(self, item: Item) -> Path:
        text = json.dumps([self._key, item.name, item.more])
        return self._parts / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def there(self, item: Item) -> bool:
        return self.file(item).exists()

    def take(self, item: Item) -> float | None:
        """Seconds that it took, None where it was there."""
        path = self.file(item)
        there = path.exists()
        if there:
            held = _read(path)
        else:
            began, cpu = time.perf_counter(), time.process_time()
            found = item.call()
            held = {
                "found": found,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
            }
            outputs.write_sealed(path, held)
        self.found[item.name] = held["found"]
        self.spent[0] += held["seconds"]
        self.spent[1] += held["cpu_seconds"]
        if item.products:
            self.products += item.products
            self.seconds += held["seconds"]
        return None if there else held["seconds"]


def _read(path: Path) -> dict[str, Any]:
    again = "the same command measures it anew"
    held = outputs.read_sealed(path, again)
    if not all(outputs.is_number(held.get(name)) for name in ("seconds", "cpu_seconds")) or not (
        isinstance(held.get("found"), dict)
    ):
        raise RunError(f"{path} is damaged: remove it, and {again}")
    return held


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
    results.refuse_twice([one.subject for one in work])
    last = _last(work)
    ways = between.of_lines(last, args)
    axis = np.linspace(-args.reach, args.reach, args.surface) if args.surface else None
    passes = sum(item.passes for one in work for item in one.items if not one.there(item))
    passes += len(work) * args.iterations * args.density
    passes += sum(_surface_passes(one, args) for one in work)
    passes += ways.passes() if ways else 0
    with Counted(max(1, round(passes)), "passes over the rows", "measuring") as shown:
        done = 0.0

        def take(one: Work, item: Item) -> None:
            nonlocal done
            stop.check()
            took, before = one.take(item), done
            if took is not None or item.name not in {each.name for each in one.items}:
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
                more = [grid.tolist()[:2], len(grid), args.density]
                call = partial(one.measure.density, one.groups[group], grid)
                take(one, Item(f"density of {group}", products * share, products, call, more))
            if axis is not None:
                call = partial(one.measure.surface, axis)
                take(one, Item("surface", _surface_passes(one, args), 0, call, axis.tolist()))
        if ways:
            more = [digest(last[name].subject) for name in ways.names]
            item = ways.item()
            take(last[ways.names[0]], item._replace(more=[item.more, more]))
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
    whole = dict(zip(("seconds", "cpu_seconds"), np.sum([w.spent for w in work], 0), strict=True))
    found: dict[str, Any] = {
        "lines": summary, "explained": explained, "hessian_products": cost, "measuring": whole,
    }  # fmt: skip
    last = _last(work)
    way = next((one.found["between"] for one in work if "between" in one.found), None)
    if way is not None:
        found["between"] = {name: way[name] for name in ("names", "seed")}
        if "line" in way:
            found["between"]["barriers"] = between.barriers(way)
    outputs.write_json(out / "analysis.json", found)
    texts = [results.table(summary), results.differences(summary)]
    outputs.replace_text(out / "table.md", "\n\n".join(filter(None, texts)) + "\n")
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
    if way is not None:
        shown["between"] = _rounded(way)
    outputs.replace_text(out / figures.SHOWN, json.dumps(shown) + "\n")
    outputs.clear_plots(out, figures.PLOTS)
    figures.draw(out)
    print((out / "table.md").read_text())
    if alone := results.without_sgd(summary):
        print(f"not compared with SGD, of which there is none of their setting: {'; '.join(alone)}")
    print(
        f"{products} products with a Hessian (of all seeds at once where they are in one folder), "
        f"{cost['seconds_each']:.2g} s each, with compilation"
    )
    print(f"analysis.json, records.json, table.md and figures are in {out}")


def _digits(values: Any) -> Any:
    """Of a figure, no more than can be seen."""
    return np.vectorize(lambda x: float(f"{x:.4g}"))(np.asarray(values)).tolist()


def _rounded(value: Any) -> Any:
    """The same of every number in it."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return _digits(value)
    return value


def _last(work: list[Work]) -> dict[str, Work]:
    """The last epoch of each line, and its first run."""
    names = results.line_names([one.subject for one in work])
    found: dict[str, Work] = {}
    for name, one in sorted(
        zip(names, work, strict=True), key=lambda named: -named[1].subject.epoch
    ):
        found.setdefault(name, one)
    return {name: found[name] for name in dict.fromkeys(names)}
