"""An analysis under way: what is to be measured, what is kept and counted; none is measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from damage import Killed, Kills, damaged_json
from experiments.analysis import figures, work
from experiments.analysis.measure import Item, Measure
from experiments.analysis.subjects import Rows, Subject
from experiments.host.errors import RunError
from experiments.host.stopping import StopNow, StopRequest
from imbsam_jax import losses

COUNTS = np.array([9, 6, 3, 2])  # up to 3 is the tail; over 8 many, under 3 few
LABELS = np.tile(np.repeat(np.arange(4), COUNTS), (2, 1))
# Of 20 rows.
SHARES = {"all": 1.0, "head": 0.75, "tail": 0.25, "many": 0.45, "medium": 0.45, "few": 0.1}


def subject(name: str = "sgd", epoch: int = 3, seeds: int = 2, weight: float = 0.0) -> Subject:
    rows = Rows(np.zeros((seeds, 20, 1), np.uint8), LABELS[:seeds])
    description = {
        "rule": name, "rule_args": {}, "ascent": {}, "loss": "cross_entropy", "loss_args": {},
        "stage2": None, "stage2_args": {}, "setting": {},
    }  # fmt: skip
    variables = {"params": {"w": np.full((seeds, 2), weight, np.float32)}}
    return Subject(
        "run", description, list(range(seeds)), epoch, variables, None, rows, rows, COUNTS, (8, 3)
    )  # fmt: skip


def args(**changes: Any) -> argparse.Namespace:
    given = {
        "loss": "cross_entropy", "per_class": False, "rho": 0.1, "iterations": 8, "probes": 6,
        "directions": 4, "steps": 2, "density": 3, "surface": 5, "batch_size": 10, "reach": 2.0,
        "ends": None,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changes})


def made(parts: Path, one: Any = None, eta: float = 3.0, **changes: Any) -> work.Work:
    return work.Work(one or subject(), args(**changes), eta, jax.devices()[:1], parts)


def test_what_is_measured_and_what_it_costs(tmp_path: Path) -> None:
    """In passes over all rows: a product 1, a gradient 0.6, the loss 0.2; of a group its share."""
    items = {item.name: (item.passes, item.products) for item in made(tmp_path).items}
    expected = {
        "levels": (0.4, 0),
        **{f"ends of {name}": (8 * share, 8) for name, share in SHARES.items()},
        "traces": (6, 6),
        "rises": (2 * 0.6 + (3 + 4) * 0.2, 0),
        "worst": (3 * 0.6 * sum(SHARES.values()), 0),
    }
    assert list(items) == list(expected)
    for name, found in items.items():
        assert found == pytest.approx(expected[name]), name
    without = [item.name for item in made(tmp_path, steps=0).items]
    assert without == list(expected)[:-1]
    classes = made(tmp_path, per_class=True).groups
    assert list(classes) == [*SHARES, *(f"class {c}" for c in range(4))]


@pytest.mark.parametrize(("eta", "none"), [(1.0, "tail"), (9.0, "head")])
def test_head_and_tail_are_needed(eta: float, none: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"--eta {eta:g} leaves no {none}.* from 2 to 9"):
        made(tmp_path, eta=eta)


ITEM = Item("x", 1.0, 0, dict)
DECIDE = {"rho": 0.2, "iterations": 9, "probes": 7, "directions": 5, "steps": 3, "loss": "adjusted",
          "per_class": True}  # fmt: skip


@pytest.mark.parametrize("flag", [*DECIDE, "density", "surface", "batch_size", "ends"])
def test_a_file_is_of_all_that_decides_a_figure(flag: str, tmp_path: Path) -> None:
    """Densities and surfaces have files of their own; rows at a time change nothing."""
    before = made(tmp_path).file(ITEM)
    after = made(tmp_path, **{flag: ["few"] if flag == "ends" else DECIDE.get(flag, 1)}).file(ITEM)
    assert (after == before) == (flag not in DECIDE)
    assert before.parent == tmp_path and before.suffix == ".json"


def test_a_file_is_of_a_subject_an_item_and_its_arguments(tmp_path: Path) -> None:
    one = made(tmp_path)
    others = [
        made(tmp_path, subject(weight=1.0)).file(ITEM), made(tmp_path, eta=2.5).file(ITEM),
        one.file(ITEM._replace(name="y")),
        one.file(ITEM._replace(more=[1])), one.file(ITEM._replace(more=[2])),
    ]  # fmt: skip
    assert len({one.file(ITEM), *others}) == 6
    assert made(tmp_path, subject("sam", 4)).file(ITEM) == one.file(ITEM)  # names decide nothing


def test_what_was_measured_is_taken_from_its_file(tmp_path: Path) -> None:
    calls: list[int] = []

    def call() -> dict[str, Any]:
        calls.append(1)
        return {"a": [1.5]}

    first, again = made(tmp_path), made(tmp_path)
    item, began = Item("x", 1.0, 7, call), time.perf_counter()
    assert not first.there(item)
    seconds = first.take(item)
    assert seconds is not None and first.there(item)
    assert 0 < seconds < time.perf_counter() - began
    assert again.take(item) is None and calls == [1]
    for one in (first, again):
        assert one.found == {"x": {"a": [1.5]}} and one.products == 7 and one.seconds == seconds
        assert one.spent[0] == seconds and 0 <= one.spent[1] < time.process_time() / 2
    first.take(item._replace(products=0, name="y"))
    assert first.products == 7 and first.seconds == seconds < first.spent[0]
    first.take(item._replace(more=[1]))
    assert len(calls) == 3 and first.products == 14


def test_a_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    """Not taken for another figure, either."""
    one, path = made(tmp_path), made(tmp_path).file(ITEM)
    one.take(ITEM._replace(call=lambda: {"a": [1.5], "b": {"c": 2.0}}))
    for what, data in damaged_json(path.read_text()):
        path.write_bytes(data)
        try:
            one.take(ITEM)
            assert one.found["x"] == {"a": [1.5], "b": {"c": 2.0}}, what
        except RunError as error:
            assert re.search(rf"{path}.*: remove it, and the same command", str(error)), what


def test_the_losses(tmp_path: Path) -> None:
    logits, labels = np.array([[1.0, 2.0, 0.0, 0.5]], np.float32), np.array([1])
    plain = made(tmp_path).measure.how.loss
    np.testing.assert_allclose(plain(logits, labels), losses.cross_entropy(logits, labels))
    one, other = (made(tmp_path, loss="adjusted").measure.how.loss for _ in range(2))
    assert one is other  # programs are kept by it
    want = losses.cross_entropy(logits + np.log(COUNTS / 20)[None], labels)
    np.testing.assert_allclose(one(logits, labels), want, rtol=1e-6)


def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Measures nothing; what is asked for, and what is shown of it."""
    seen: dict[str, list[Any]] = {"shown": [], "seconds": [], "density": [], "surface": []}
    at = {"train": 10.0, "test": 5.0}
    level = {
        part: {"correct": [[4.0, 3, 2, 1]] * 2, "total": [[x, x, x, x]] * 2,
               "loss": [[x / 2] * 4] * 2}
        for part, x in at.items()
    }  # fmt: skip
    rises = {rise: [[0.1] * 6] * 2 for rise in ("sam", "imbsam", "random", "random_error")}
    worst = {name: [0.3, 0.4] for name in SHARES}
    monkeypatch.setattr(Measure, "levels", lambda self: level)

    def ends(self: Any, group: Any) -> Any:  # the first model's are the widest
        less = float(self.subject.variables["params"]["w"][0, 0])
        return {"smallest": [-1.0, -3.0 + less], "largest": [7.0, 17.0 - less]}

    monkeypatch.setattr(Measure, "ends", ends)
    monkeypatch.setattr(
        Measure, "traces", lambda self: {name: [[1.0, 2, 3], [2.0, 3, 4]] for name in SHARES}
    )
    monkeypatch.setattr(Measure, "rises", lambda self: rises)
    monkeypatch.setattr(Measure, "worst", lambda self: worst)

    def density(self: Any, group: Any, grid: Any) -> Any:
        seen["density"].append((group.tolist(), grid[0], grid[-1], len(grid)))
        return {"density": [[1.23456, 2.0], [3.0, 4.0]]}

    def surface(self: Any, axis: Any) -> Any:
        seen["surface"].append(axis.tolist())
        return {"losses": [[0.123456]]}

    monkeypatch.setattr(Measure, "density", density)
    monkeypatch.setattr(Measure, "surface", surface)

    class Shown(work.Counted):
        def __init__(self, total: int, *words: str):
            seen["shown"].append([total])
            super().__init__(total, *words)

        def advance(self, units: int, seconds: float) -> None:
            seen["shown"][-1].append(units)
            seen["seconds"].append(seconds)

    monkeypatch.setattr(work, "Counted", Shown)
    monkeypatch.setattr(work.between, "of_lines", lambda last, args: None)
    monkeypatch.setattr(figures, "draw", lambda out: seen.setdefault("drawn", [out]))
    return seen


def two(parts: Path, **changes: Any) -> list[work.Work]:
    parts.mkdir(exist_ok=True)
    return [
        made(parts, subject(name, weight=w), **changes) for w, name in enumerate(("sgd", "sam"))
    ]


def test_an_analysis_counts_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = fake(monkeypatch), tmp_path
    works = two(tmp_path / "parts")
    work.measured(works, args(), StopRequest(), out)
    each = sum(item.passes for item in works[0].items)
    # Densities: 8 products for each of 3 probes, of head and tail, together all rows. Surfaces: 25
    # points of two seeds, of which the first alone is shown.
    total, *parts = seen["shown"][0]
    assert total == round(2 * (each + 8 * 3 + 0.2 * 25 / 2)) == sum(parts)
    took = sum(seen["seconds"])
    assert took > 0 and took == pytest.approx(sum(one.spent[0] for one in works))
    # Spectra from -3 to 17, and a twentieth more on both sides.
    head, tail = [True, True, False, False], [False, False, True, True]
    assert [x[0] for x in seen["density"]] == [head, tail] * 2
    for _, *grid in seen["density"]:
        assert grid == pytest.approx([-4, 18, 1000])
    assert seen["surface"] == [[-2, -1, 0, 1, 2]] * 2 and seen["drawn"] == [out]

    found = json.loads((out / "analysis.json").read_text())
    products = 2 * (6 * 8 + 6 + 2 * 24)
    cost = found["hessian_products"]
    assert cost["products"] == products
    assert cost["seconds"] == pytest.approx(sum(one.seconds for one in works))
    spent = [sum(one.spent[k] for one in works) for k in (0, 1)]
    assert [found["measuring"][of] for of in ("seconds", "cpu_seconds")] == pytest.approx(spent)
    assert cost["seconds_each"] == pytest.approx(cost["seconds"] / products)
    records = json.loads((out / "records.json").read_text())
    assert [(one["rule"], one["seed"]) for one in records] == [
        ("sgd", 0), ("sgd", 1), ("sam", 0), ("sam", 1)
    ]  # fmt: skip
    shown = json.loads((out / figures.SHOWN).read_text())
    assert shown["rise"] == "worst" and shown["axis"] == [-2, -1, 0, 1, 2]
    assert shown["grids"]["head"][:2] == [-4, -3.978] and len(shown["grids"]["tail"]) == 1000
    names = ["sgd, cross_entropy", "sam, cross_entropy"]
    assert list(shown["densities"]) == list(shown["surfaces"]) == names
    for name in names:  # the mean over seeds, to four digits
        assert shown["densities"][name] == {"head": [2.117, 3], "tail": [2.117, 3]}
        assert shown["surfaces"][name] == [[0.1235]]
    said = capsys.readouterr().out
    assert f"{products} products with a Hessian" in said
    assert (out / "table.md").read_text().strip() in said

    # Again: nothing but densities and surfaces is counted, and nothing measured.
    for kind in ("density", "surface", "seconds"):
        seen[kind].clear()
    work.measured(two(tmp_path / "parts"), args(), StopRequest(), out)
    assert seen["shown"][1][0] == round(2 * (24 + 2.5)) == sum(seen["shown"][1][1:])
    assert not seen["density"] and not seen["surface"] and not any(seen["seconds"])
    assert json.loads((out / "analysis.json").read_text()) == found


def test_the_same_line_twice_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    again = subject()._replace(run="again")
    works = [made(tmp_path / "parts"), made(tmp_path / "parts", again)]
    with pytest.raises(RunError, match="are of one setting and seed"):
        work.measured(works, args(), StopRequest(), tmp_path)


def test_figures_have_four_digits_however_they_are_nested() -> None:
    value = {"a": {"b": [1 / 3, 2.0]}, "names": ["x"], "none": [], "word": "y", "kept": 1 / 3}
    wanted = {"a": {"b": [0.3333, 2.0]}, "names": ["x"], "none": [], "word": "y", "kept": 1 / 3}
    assert work._rounded(value) == wanted


def test_after_a_kill_at_any_write_it_ends_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part and each file of the end is whole or not there."""
    fake(monkeypatch)
    kills = Kills(monkeypatch)

    def start(out: Path, killed_at: int | None = None) -> dict[str, Any]:
        out.mkdir(exist_ok=True)
        kills.at(killed_at)
        work.measured(two(out / "parts"), args(), StopRequest(), out)
        return json.loads((out / "analysis.json").read_text())

    whole = start(tmp_path / "whole")
    names = kills.names
    assert len(names) > 10 and {"records.json", "analysis.json", figures.SHOWN} <= set(names)
    for write in range(len(names)):
        out = tmp_path / str(write)
        with pytest.raises(Killed):
            start(out, write)
        assert start(out)["lines"] == whole["lines"]
        for name in ("records.json", figures.SHOWN, "table.md"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_without_densities_surfaces_and_ascent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake(monkeypatch)
    changes = {"density": 0, "surface": 0, "steps": 0}
    works = two(tmp_path / "parts", **changes)
    for stale in ("surfaces.png", "densities.svg"):  # of an earlier analysis, which had them
        (tmp_path / stale).touch()
    work.measured(works, args(**changes), StopRequest(), tmp_path)
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.svg")]
    total, *parts = seen["shown"][0]
    assert total == round(2 * sum(item.passes for item in works[0].items)) == sum(parts)
    assert json.loads((tmp_path / figures.SHOWN).read_text()) == {"rise": "sam"}


def test_a_stop_is_answered_before_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    works = two(tmp_path / "parts")
    with pytest.raises(StopNow):
        work.measured(works, args(), StopRequest(deadline=0.0), tmp_path)
    assert not works[0].found


def test_of_a_line_its_last_epoch_is_drawn(tmp_path: Path) -> None:
    """In the order in which lines first stand; of equal epochs the first run's."""
    several = [made(tmp_path, subject(name, epoch)) for name, epoch in (
        ("sgd", 3), ("sam", 5), ("sgd", 9), ("sam", 5), ("sgd", 8),
    )]  # fmt: skip
    assert work._last(several) == {
        "sgd, cross_entropy": several[2], "sam, cross_entropy": several[1]
    }  # fmt: skip
    assert list(work._last(several)) == ["sgd, cross_entropy", "sam, cross_entropy"]


def test_lines_of_one_rule_are_drawn_apart(tmp_path: Path) -> None:
    sam = subject("sam", 5)
    near = sam._replace(description={**sam.description, "passes": {"examples": "split_norm"}})
    two = [made(tmp_path, one) for one in (sam, near)]
    assert list(work._last(two).values()) == two


def test_ways_between_models_are_measured_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted, in a file of all models that they go between, and of the first one's line."""
    seen = fake(monkeypatch)
    line = {"t": [0, 0.5, 1], "to": {"sam, cross_entropy": [[1, 1], [3, 0.5], [2.00004, 1]]}}
    way = {"names": ["sam, cross_entropy", "sgd, cross_entropy"], "seed": 0, "line": line}
    calls: list[Any] = []
    item = Item("between", 7.0, 0, lambda: (calls.append(1), way)[1], [3])
    ways = argparse.Namespace(passes=lambda: 7.0, names=way["names"], item=lambda: item)
    monkeypatch.setattr(work.between, "of_lines", lambda last, args: ways)
    changes = {"density": 0, "surface": 0}
    works = two(tmp_path / "parts", **changes)
    work.measured(works, args(**changes), StopRequest(), tmp_path)
    each = sum(item.passes for item in works[0].items)
    total, *parts = seen["shown"][0]
    assert total == round(2 * each + 7) == sum(parts)
    assert works[1].found["between"] == way and "between" not in works[0].found
    found = json.loads((tmp_path / "analysis.json").read_text())["between"]
    assert found["seed"] == 0 and found["names"] == way["names"]
    assert found["barriers"]["sam, cross_entropy"]["head"] == pytest.approx(1.5, abs=1e-4)
    shown = json.loads((tmp_path / figures.SHOWN).read_text())["between"]
    assert shown["line"]["to"]["sam, cross_entropy"][2] == [2, 1]
    assert f"figures are in {tmp_path}" in capsys.readouterr().out
    # Of the same models it is there; of another one of them it is not.
    work.measured(two(tmp_path / "parts", **changes), args(**changes), StopRequest(), tmp_path)
    assert calls == [1]
    other = [made(tmp_path / "parts", subject("sgd", weight=5.0), **changes), works[1]]
    work.measured(other, args(**changes), StopRequest(), tmp_path)
    assert calls == [1, 1]
    del way["line"]
    (tmp_path / "others").mkdir()
    works = two(tmp_path / "others", **changes)
    work.measured(works, args(**changes), StopRequest(), tmp_path)
    assert "barriers" not in json.loads((tmp_path / "analysis.json").read_text())["between"]


def test_lines_without_their_sgd_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of what is there already something is counted: a bar of nothing would not end."""
    seen = fake(monkeypatch)
    changes = {"density": 0, "surface": 0}
    far = subject("sam", weight=1.0)
    far = far._replace(description={**far.description, "setting": {"lr": 2}})
    (tmp_path / "parts").mkdir()
    works = [made(tmp_path / "parts", one, **changes) for one in (subject(), far)]
    work.measured(works, args(**changes), StopRequest(), tmp_path)
    said = capsys.readouterr().out
    name = "sam, cross_entropy"
    assert (
        f"not compared with SGD, of which there is none of their setting: {name}\n" in said
    ) and f"figures are in {tmp_path}" in said
    works = [made(tmp_path / "parts", one, **changes) for one in (subject(), far)]
    work.measured(works, args(**changes), StopRequest(), tmp_path)
    assert seen["shown"][1] == [1]
    work.measured(two(tmp_path / "parts", **changes), args(**changes), StopRequest(), tmp_path)
    assert "not compared" not in capsys.readouterr().out.split(name)[-1]


def test_what_was_measured_before_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files, recorded: else a folder of an earlier version would be measured anew."""
    fake(monkeypatch)
    works = [made(tmp_path / "parts", subject())]
    (tmp_path / "parts").mkdir()
    work.measured(works, args(), StopRequest(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert len(names) == 10 + 3
    assert hashlib.sha256(" ".join(names).encode()).hexdigest()[:16] == "f30998723d5a52aa"
