"""README, docs and results pages: Python blocks run, commands parse, links lead somewhere."""

import importlib
import re
import subprocess
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.csv
import pytest

import imbsam_jax as ij
from experiments import cifar_lt, digits_lt, imagenet_lt, inaturalist, report, sweep
from experiments.anomaly import command as anomaly
from experiments.command import presets
from experiments.command.plan import make_plan
from places import ROOT
from tiny import tiny_dataset

SHOWING = (cifar_lt, digits_lt, sweep, anomaly, imagenet_lt, inaturalist)
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS, *sorted((ROOT / "results").rglob("README.md"))]


def named(page):
    return page.parent.name if page.name == "README.md" else page.stem


# ---- blocks of Python -----------------------------------------------------------------------


def blocks(page):
    """Each with its line, so that what fails is found; included scripts have tests of their own."""
    text = page.read_text()
    return [
        compile("\n" * text.count("\n", 0, found.start(1)) + found[1], str(page), "exec")
        for found in re.finditer(r"^```python[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if not found[1].startswith("--8<--")
    ]


class Model:
    """Stands for the reader's: logits = images @ params."""

    def apply(self, params, images):
        return images @ params


def readers():
    """What a reader has before the first block of a page."""
    rng = np.random.default_rng(0)
    train_labels = np.repeat(np.arange(3), [500, 100, 20])
    class_counts = ij.class_counts(train_labels, 3)

    def losses_fn(params, images, labels):
        logits = images @ params
        return ij.losses.cross_entropy(logits, labels), logits

    return {
        "ij": ij,
        "model": Model(),
        "train_labels": train_labels,
        "num_classes": 3,
        "class_counts": class_counts,
        "rule": ij.rules.imbsam(class_counts, rho=0.05, eta=100),
        "losses_fn": losses_fn,
        "optimizer": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9)),
        "images": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
        "labels": jnp.arange(8) % 3,
        "params": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    }


@pytest.mark.allow_rank_promotion
@pytest.mark.parametrize(
    "page",
    [
        # A tutorial is also run by every build of the site.
        pytest.param(page, marks=[pytest.mark.slow] if page.stem == "first-steps" else [])
        for page in PAGES
        if blocks(page)
    ],
    ids=named,
)
def test_every_block_runs(page):
    """One after the other, as a reader would paste them."""
    names = readers()
    for block in blocks(page):
        exec(block, names)


def test_readmes_step_is_imbsams():
    """The same as through the other door; examples/ compares more."""
    names = readers()
    exec(blocks(README)[0], names)
    params, images, labels = (names[name] for name in ("params", "images", "labels"))
    after, _, loss = names["step"](params, names["optimizer"].init(params), images, labels)
    expected = ij.losses.cross_entropy(images @ params, labels).mean()
    chex.assert_trees_all_close(loss, expected, rtol=1e-6)
    tx = optax.chain(ij.sharpness_aware(names["rule"]), names["optimizer"])
    fn = ij.class_weighted_grad(names["losses_fn"], labels, images, labels)
    updates, _ = tx.update(fn, tx.init(params), params)
    chex.assert_trees_all_close(optax.apply_updates(params, updates), after, atol=1e-6)
    assert not np.allclose(after, params, atol=1e-4)


# ---- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_links_lead_to_files(page):
    """As a code host follows them; anchors are checked where the site is built."""
    code = re.compile(r"^```.*?^```|`[^`\n]+`|\$[^$\n]+\$", re.DOTALL | re.MULTILINE)
    text = code.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" not in target and (page.parent / target).is_file(), target


def test_readme_is_short():
    assert len(README.read_bytes()) <= 7000


# ---- shell commands -------------------------------------------------------------------------

SHELL = """
set -euf # no pattern is expanded: nothing need lie where the commands point
python() { printf '%s\\0' "$@"; printf '\\n\\0'; }
taskset() { shift 2; "$@"; }
"""


def scripts(page):
    """The blocks of shell commands in a page: fenced without a language, or indented."""
    blocks, fenced = [[]], None
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = line[3:] if fenced is None else None
            blocks.append([])
        elif fenced == "" or (fenced is None and line.startswith("    ")):
            blocks[-1].append(line)
        elif fenced is None and line:
            blocks.append([])
    return ["\n".join(block) for block in blocks if any("python -m" in line for line in block)]


def commands(script):
    """(module, flags) of each `python -m module flags` as a shell would run them, loops and all."""
    done = subprocess.run(
        ["bash", "-c", SHELL + script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    for words in done.stdout.split("\n\0")[:-1]:
        minus_m, module, *flags = words.split("\0")[:-1]
        assert minus_m == "-m"
        yield module, flags


def documented(module):
    """The commands in a module's docstring."""
    joined = module.__doc__.replace("\\\n", " ")
    for line in re.findall(r"^ *python -m (.*)$", joined, re.MULTILINE):
        name, *flags = line.split("#")[0].split()
        yield name, flags


@pytest.fixture(scope="module")
def datasets():
    """By number of classes: as CIFAR100-LT and CIFAR10-LT."""
    return {
        100: tiny_dataset(counts=tuple(ij.long_tail_counts(100, 500, 100))),
        10: tiny_dataset(counts=tuple(ij.long_tail_counts(10, 5000, 100))),
    }


def parsed(name, flags, datasets):
    """As the command would; for images made up to where training begins."""
    module = importlib.import_module(name)
    short = name.rpartition(".")[2]
    if short in presets.TABLES:
        args = presets.parse(module.arguments(), flags)
        if getattr(args, "export", None) is None:
            of_ten = "cifar10_" in (getattr(args, "data", None) or "")
            dataset = datasets[10 if of_ten else 100]
            plan = make_plan(args, dataset, module.describe(args, dataset))
            assert list(plan.second) == args.stage2
    elif short == "sweep":
        args = sweep.parse(flags)
        sweep.grid_of(args)
    elif short == "study":  # what follows -- is for compare
        args, theirs = module.divided(flags)
        importlib.import_module("experiments.compare").arguments().parse_args(
            [*theirs, "--out", "there"]
        )
    else:
        args = module.arguments().parse_args(flags)
    return args


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=named)
def test_every_command_of_a_page_is_accepted(page, datasets, monkeypatch, capsys):
    """On class counts of CIFAR100-LT or CIFAR10-LT; those of `report` on committed runs are run."""
    monkeypatch.chdir(ROOT)
    found = [command for script in scripts(page) for command in commands(script)]
    assert found
    for name, flags in found:
        args = parsed(name, flags, datasets)
        if name.endswith(".report") and not args.out and all(Path(x).exists() for x in args.runs):
            report.main(args)
            assert "accuracy (%)" in capsys.readouterr().out


def test_every_entry_is_shown():
    """In README or docs; every page of results has the command that it was made with."""
    entries = (
        *presets.TABLES, "digits_lt", "sweep", "anomaly", "report", "evaluate", "analyse",
        "compare", "study",
    )  # fmt: skip
    shown = {
        name for page in (README, *DOCS) for script in scripts(page) for name, _ in commands(script)
    }
    assert shown >= {f"experiments.{entry}" for entry in entries}
    assert all(scripts(page) for page in PAGES if "results" in page.parts[-3:])


def test_results_pages_name_their_reports():
    """`report` is run at least on these: a command that nothing runs is not tested."""
    run = [
        path
        for page in PAGES
        for script in scripts(page)
        for name, flags in commands(script)
        if name.endswith(".report")
        for path in flags
    ]
    for folder in ("cifar100_lt_100", "split_norm"):
        assert f"results/{folder}" in run


@pytest.mark.parametrize("module", SHOWING, ids=lambda module: module.__name__)
def test_every_documented_command_is_accepted(module, datasets):
    for name, flags in documented(module):
        parsed(name, flags, datasets)


def test_report_takes_every_folder_of_results(capsys, monkeypatch):
    """As a shell expands them, pages and pictures too."""
    monkeypatch.chdir(ROOT)
    for folder in ("cifar100_lt_100", "cifar100_lt_cpu10", "split_norm"):
        children = sorted(map(str, Path("results", folder).iterdir()))
        for paths in ([f"results/{folder}"], children):
            report.main(report.arguments().parse_args(paths))
            shown = " ".join(capsys.readouterr().out.split())
            assert ("README.md (no report)" in shown) == (paths is children)


# ---- names ----------------------------------------------------------------------------------


def test_the_guide_names_what_there_is():
    """Functions, tables and files of CONTRIBUTING: each is a word of the code, or a path."""
    folders = ("imbsam_jax", "experiments", "benchmarks", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    paths = [path.relative_to(ROOT).as_posix() for path in files]
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([A-Za-z_][\w./]*)[(`]", guide)
    for name in (name for name in named if re.search(r"[A-Z_.]", name)):
        if name.endswith(".py"):
            assert any(path.endswith(name) for path in paths), name
        elif not (ROOT / name).exists():
            assert set(re.split(r"[./]", name)) <= words, name


def test_files_that_are_named_are_there():
    """In pages, docstrings and comments, by their path in the repository."""
    folders = ("imbsam_jax", "experiments", "benchmarks", "examples", "tests", "docs")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    named = re.compile(rf"(?<![\w/])(?:{'|'.join(folders)})/[\w/]+\.(?:py|md|toml)\b")
    for path in (*PAGES, ROOT / "CHANGELOG.md", *sources):
        for name in set(named.findall(path.read_text())) - {"examples/SCRIPT.py"}:
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_the_words_for_what_is_missing():
    """Of a text file: those that pyarrow takes for no value, which the page names."""
    page = (ROOT / "docs" / "compare.md").read_text()
    (said,) = re.findall(r"also the words (.*?)\(a file has", page, re.DOTALL)
    words = set(re.findall(r"`([^`]+)`", said)) - {"-"}
    words |= {f"-{word}" for word in words if word.startswith("1.")}
    assert words | {""} == set(pyarrow.csv.ConvertOptions().null_values)
