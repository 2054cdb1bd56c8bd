"""Tables that follow from the code and from results/, made while the site is built.

A new rule, loss, preset, command or flag is in them without an edit here.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks
import experiments
import imbsam_jax as ij
from experiments.command import loss_flags, method_flags, presets

ROOT = Path(__file__).resolve().parent.parent
COUNTS = np.array([500, 80, 5])
# A value for what has no default.
_CHOSEN = {"switch_step": 1, "noise_ratio": 1e-6}


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


# ---- rules ----------------------------------------------------------------------------------


def rules() -> str:
    """What every rule weighs, for class counts 500, 80 and 5."""
    heads = ("rule", "in words", "base", "groups", "radii", "forward + backward")
    return markdown(heads, [row for name in method_flags.rule_names() for row in _of_rule(name)])


def _of_rule(name: str) -> list[list[str]]:
    options = {option: flag.default for option, flag in method_flags.PARAMETERS.items()}
    rule = method_flags.build_rule(name, COUNTS, {**options, **_CHOSEN})
    words = first_line(getattr(ij.rules, name, ij.cc_sam))
    if not callable(rule):  # a function of its own, not a table
        each = "each class of the batch"
        return [[f"`{name}`", words, "", each, "a bound's", "see its docstring"]]
    found = []
    for number, stage in enumerate(getattr(rule, "stages", [rule])):
        table = stage(0)
        groups = len(table.groups)
        passes = f"{1 + groups} + {(table.base is not None) + 2 * groups}"
        bound = getattr(rule, "ascent", {}).get("bound", False)
        found.append([
            f"`{name}`" if number == 0 else "… later", words if number == 0 else "",
            "" if table.base is None else _weights(table.base),
            "; ".join(map(_weights, table.groups)),
            "a bound's" if bound else ", ".join(f"{radius:g}" for radius in table.radii),
            passes,
        ])  # fmt: skip
    return found


def in_readme(text: str) -> str:
    """The README with its table of rules as the functions have it; `make readme` writes it."""
    heads = ("`--rule`, `ij.rules`", "in words", "needs", "forward + backward", "source")
    made = markdown(heads, map(_of_readme, method_flags.rule_names()))
    found, number = _BETWEEN.subn(lambda marks: f"{marks[1]}\n\n{made}\n\n{marks[2]}", text)
    assert number == 1, "README.md has no place for the table of rules, or several"
    return found


_BETWEEN = re.compile(r"(<!-- rules: .*? -->)\n.*?(<!-- end -->)", re.DOTALL)


def _of_readme(name: str) -> list[str]:
    function = getattr(ij.rules, name, ij.cc_sam.value_and_grad)
    words = first_line(getattr(ij.rules, name, ij.cc_sam)).rstrip(".")
    taken = inspect.signature(function).parameters.values()
    keywords = [p for p in taken if p.kind == p.KEYWORD_ONLY]
    needs = [f"`{p.name}`" for p in keywords if p.default is p.empty or p.name in _CHOSEN]
    source = re.search(r"Source: (.*?\d{4})", inspect.getdoc(function) or "", re.DOTALL)
    passes = ", then ".join(row[-1] for row in _of_rule(name))
    return [
        f"`{name}`", words, ", ".join(needs), passes,
        source[1] if source else "",
    ]  # fmt: skip


def _weights(row: Any) -> str:
    return " ".join(f"{weight:.3g}" for weight in np.asarray(row))


def first_line(of: Any) -> str:
    return (inspect.getdoc(of) or "").splitlines()[0]


def gains() -> str:
    """All - SGD of every rule on the digits, with either loss (results/digits_lt)."""
    lines = _summary("all_rules") + _summary("gsa/1e-2")[1::2]
    base = np.array(lines[0]["all_by_seed"])
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        difference = np.array(line["all_by_seed"]) - base
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        shown = f"{difference.mean():+.1f} ± {error:.1f}" if line is not lines[0] else ""
        found.setdefault(line["rule"], {})[line["loss"]] = shown
    rows = [[f"`{name}`", of["cross_entropy"], of["logit_adjusted"]] for name, of in found.items()]
    return markdown(("rule", "All - SGD", "with logit adjustment"), rows)


def _summary(folder: str) -> list[dict[str, Any]]:
    text = (ROOT / "results" / "digits_lt" / folder / "summary.json").read_text()
    found: list[dict[str, Any]] = json.loads(text)
    return found


# ---- what the command lines take --------------------------------------------------------------


def losses() -> str:
    """Every --loss: its flags and the function behind it."""
    parser = argparse.ArgumentParser()
    loss_flags.add_arguments(parser)
    spelled = {action.dest: action.option_strings[0] for action in parser._actions}
    rows = []
    for name, loss in sorted(loss_flags.LOSSES.items()):
        taken = ", ".join(f"`{spelled[flag]}`" for flag in loss.taken)
        rows.append([f"`{name}`", first_line(getattr(ij.losses, name)), taken])
    return markdown(("`--loss`", "in words", "its flags"), rows)


def of_papers() -> str:
    """Every preset, a table an entry point, with what was not published."""
    parts = []
    for entry, table in presets.TABLES.items():
        rows = [
            [f"`{name}`", preset.source, "; ".join(preset.unpublished) or "nothing known"]
            for name, preset in table.items()
        ]
        heads = ("`--preset`", "source", "not published, or different here")
        parts.append(f"### `experiments.{entry}`\n\n{markdown(heads, rows)}")
    return "\n\n".join(parts)


def commands() -> str:
    """`--help` of every command."""
    os.environ["COLUMNS"] = "110"
    parts = []
    for package in (experiments, benchmarks):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            name = f"{found.name}.command" if found.ispkg else found.name
            if found.ispkg and importlib.util.find_spec(name) is None:
                continue
            module = importlib.import_module(name)
            if not hasattr(module, "arguments"):
                continue
            parser = module.arguments()
            parser.prog = f"python -m {found.name}"
            parts.append(f"## {found.name}\n\n```text\n{parser.format_help().rstrip()}\n```")
    return "\n\n".join(parts)


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(in_readme(README.read_text()))
