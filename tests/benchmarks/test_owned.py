"""The --out of every benchmark is looked at, and locked, before anything is measured."""

import importlib
import pkgutil
import types

import jax
import pytest

from benchmarks import input_pipeline, peak
from experiments import data, models, run, step
from experiments.host import locks
from experiments.host.errors import RunError

NAMES = (
    "accelerator", "adapters", "conv_profile", "cpu_cores", "exact_batch_norm", "input_pipeline",
    "kernels", "seeds_together", "step_cost",
)  # fmt: skip
MORE = {"accelerator": ["--quick"]}


@pytest.fixture(scope="module")
def imported():
    """Whatever a benchmark imports as it begins: decorated by jax.jit while that is there."""
    for package in (data, models, run, step):
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{found.name}")


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch, imported):
    """Whatever begins to is another error."""
    for where, name in (
        (jax, "jit"), (jax, "eval_shape"), (peak, "measure"), (input_pipeline, "photographs")
    ):  # fmt: skip
        monkeypatch.setattr(where, name, None)


def measure(name, out):
    module = importlib.import_module(f"benchmarks.{name}")
    flags = [*MORE.get(name, []), "--out", str(out)]
    module.main(module.arguments().parse_args(flags))


@pytest.mark.parametrize("name", NAMES)
def test_an_out_that_cannot_be_written(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in (("file", "is no folder: choose another --out"), ("file/x", "cannot write")):
        with pytest.raises(RunError, match=said):
            measure(name, tmp_path / out)
    with (
        locks.Lock(tmp_path / "out"),
        pytest.raises(RunError, match="is in use by another process"),
    ):
        measure(name, tmp_path / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("cpu_cores", ["--model", "mlp", "mlp"], "--model names mlp twice"),
        ("cpu_cores", ["--devices", "1", "1"], "--devices names 1 twice"),
        ("cpu_cores", ["--parallel", "jit", "jit"], "--parallel names jit twice"),
        ("seeds_together", ["--model", "mlp", "mlp"], "--model names mlp twice"),
        ("accelerator", ["--quick", "--parts", "peak", "peak"], "--parts names peak twice"),
        (
            "exact_batch_norm",
            ["--batch-size", "8"],
            "--tail-rows 12 are more than the",
        ),
    ],
)
def test_what_would_be_measured_twice_or_not_at_all(name, flags, said, tmp_path):
    module = importlib.import_module(f"benchmarks.{name}")
    args = module.arguments().parse_args([*flags, "--out", str(tmp_path / "out")])
    with pytest.raises(RunError, match=said):
        module.main(args)
    assert not (tmp_path / "out").exists()


def test_ways_with_batch_normalisation_need_a_model_with_it(capsys):
    from benchmarks import exact_batch_norm

    for model in ("mlp", "resnet32_gn", "vit_ti4"):
        with pytest.raises(SystemExit):
            exact_batch_norm.arguments().parse_args(["--model", model, "--out", "x"])
        assert f"argument --model: invalid choice: '{model}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_as_a_command_it_asks_for_its_out(name, refuse):
    words = refuse(f"benchmarks.{name}", code=2)
    assert words == "error: the following arguments are required: --out"


def test_a_log_of_the_accelerator_is_written_line_by_line(refuse, monkeypatch):
    """So that what is lent can be watched through a pipe."""
    told = []
    monkeypatch.setattr(
        "sys.stdout", types.SimpleNamespace(reconfigure=lambda **how: told.append(how))
    )
    refuse("benchmarks.accelerator", code=2)
    assert told == [{"line_buffering": True}]
