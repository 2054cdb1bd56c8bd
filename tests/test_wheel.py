"""The source distribution holds what it says, the wheel works alone; the files beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import imbsam_jax as ij
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INCLUDED = [
    path.removeprefix("/")
    for path in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
]
CONSTRAINTS = {path.stem: path for path in sorted((ROOT / "constraints").glob("*.txt"))}


def run(*command: object, cwd: Path, **env: str) -> str:
    settings = {**os.environ, **env}
    settings.pop("PYTHONPATH", None)
    done = subprocess.run(
        [os.fspath(part) if isinstance(part, Path) else str(part) for part in command],
        cwd=cwd, env=settings, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: Any) -> Path:
    """A folder with the source distribution, and the wheel that is built of it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    return out


def names_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.mark.slow
def test_the_source_distribution_holds_what_it_says(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    held = names_in(sdist)
    for path in INCLUDED:
        assert any(name == path or name.startswith(f"{path}/") for name in held), path
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert tests <= held and not any(".cache" in name or "runs/" in name for name in held)


@pytest.mark.slow
def test_the_wheel_is_the_library_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (name for name in files if name.endswith("METADATA"))
        told = Parser().parsestr(archive.read(metadata).decode())
    assert {name.split("/")[0] for name in files} == {
        "imbsam_jax", f"imbsam_jax-{ij.__version__}.dist-info"
    }  # fmt: skip
    assert "imbsam_jax/py.typed" in files and told["License-Expression"] == "Apache-2.0"
    needs = {line for line in told.get_all("Requires-Dist") if "extra ==" not in line}
    assert {re.match(r"[\w-]+", line)[0] for line in needs} == {"jax", "jaxlib", "numpy", "optax"}


ALONE = """
import pathlib, sys
import jax.numpy as jnp, numpy as np, optax

block = pathlib.Path(sys.argv[1]).read_text()

class model:
    @staticmethod
    def apply(params, images):
        return images @ params

images, labels = jnp.eye(8, 4), jnp.arange(8) % 3
names = {
    "model": model, "optimizer": optax.sgd(0.1), "num_classes": 3, "images": images,
    "labels": labels, "params": jnp.ones((4, 3)), "train_labels": np.repeat(range(3), [500, 90, 9]),
}
exec(block, names)
params = names["params"]
after, _, loss = names["step"](params, names["optimizer"].init(params), images, labels)
assert after.shape == (4, 3) and not np.allclose(after, params)
import imbsam_jax
try:
    imbsam_jax.nnx
except ModuleNotFoundError as error:
    print(error)
print(imbsam_jax.__file__, round(float(loss), 4))
"""


@pytest.mark.slow
def test_the_wheel_runs_the_five_lines_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", home, cwd=tmp_path)
    python = home / "bin" / "python"
    constraints = CONSTRAINTS["{}.{}".format(*sys.version_info)]
    run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=tmp_path)
    installed = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    assert "imbsam-jax==" in installed.replace("_", "-") and "flax==" not in installed
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "block.py").write_text(block[1])
    (tmp_path / "alone.py").write_text(ALONE)
    said = run(python, "-W", "error", "alone.py", "block.py", cwd=tmp_path, XLA_FLAGS="")
    flax, last = said.splitlines()
    assert flax.startswith("imbsam_jax.nnx needs Flax")
    # Three logits of one value each: log 3.
    assert last.startswith(str(home)) and last.endswith(" 1.0986")


# ---- the files beside the package ---------------------------------------------------------------


def test_the_version_is_one() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["project"]["version"] == ij.__version__
    assert cited["title"].startswith("imbsam_jax: ")
    assert "date-released" not in cited  # nothing is released yet


def test_what_the_source_distribution_names_is_there() -> None:
    for path in INCLUDED:
        assert (ROOT / path).exists(), path


def test_every_python_has_its_versions() -> None:
    """Each has what dev asks for, and its JAX; CI runs all of them, by targets that there are."""
    named = {
        line.rpartition(" ")[2]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = flow["jobs"]["tests"]["strategy"]["matrix"]["python-version"]
    assert set(CONSTRAINTS) == named == set(matrix)
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"]]
    for name in ("experiments", "curvature", "docs", "test", "dev"):
        asked += [line for line in extras[name] if not line.startswith("imbsam-jax")]
    for path in CONSTRAINTS.values():
        lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
        pins = {_plain(line.partition("==")[0]): line.partition("==")[2] for line in lines}
        assert all(pins.values()), path
        for line in asked:
            name = _plain(re.match(r"[\w-]+", line)[0])
            assert name in pins, f"{path.name} has no {name}"
        wanted = "0.10." if path.stem == "3.11" else "0.12."
        assert pins["jax"].startswith(wanted) and pins["jaxlib"].startswith(wanted)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_ci_runs_targets_that_there_are() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z-]+)", text)) <= {*targets, "docs"}
    assert set(re.findall(r"tests/\w+\.py", text)) <= {
        f"tests/{p.name}" for p in ROOT.glob("tests/*")
    }
