"""What every test shares: JAX on the CPU, a compilation cache, strict broadcasting, subprocesses"""

import gc
import os
import runpy
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import compile_cache
import ir_context
import xla_flags

ROOT = Path(__file__).resolve().parent.parent

# Before the first import of jax, and as variables so that subprocesses have them too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")
# A tenth of the time of refusals went into which of JAX's frames to leave out of a traceback.
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")

# Thousands of small programs, most of them run once: what XLA gains at run time by optimising is
# far less than what it takes (the fusion emitters alone take most of a compilation). A name that
# this jaxlib does not know would abort the process: those are left out.
_QUICK = " ".join(
    xla_flags.known(
        (
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ),
        ROOT / ".cache",
    )
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

if not compile_cache.is_shared_safely():
    # Then no worker reads what another is writing: each has a cache of its own.
    _OWN = f"{os.environ['JAX_COMPILATION_CACHE_DIR']}-{os.environ.get('PYTEST_XDIST_WORKER', '0')}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN
    jax.config.update("jax_compilation_cache_dir", _OWN)

ir_context.share()

# The first example compiles, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("imbsam_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("imbsam_jax")

# On a busy machine emulated devices may meet late: XLA aborts the process after 40 seconds.
_PATIENT = " ".join(
    xla_flags.known(("--xla_cpu_collective_call_terminate_timeout_seconds=600",), ROOT / ".cache")
)

# A script that test_devices.py runs on emulated devices, not a module to import here.
collect_ignore = ["on_devices.py"]

# Tracing makes objects by the million, and looking through all that is imported for garbage after
# every few hundred of them took a tenth of the time of the tests.
gc.set_threshold(20_000, 10, 10)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_old() -> Iterator[None]:
    """What a module leaves in caches is not looked through again in every later one."""
    yield
    gc.collect(1)
    gc.freeze()


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _strict_rank_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Broadcasting [B] against [B, C] without saying so is an error."""
    allowed = request.node.get_closest_marker("allow_rank_promotion") is not None
    with jax.numpy_rank_promotion("allow" if allowed else "raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit JAX numbers inside the test, as before after it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def run_python() -> RunPython:
    """Run Python in a process of its own, from the repository root, on N emulated CPU devices.

    With `devices=None` it emulates as many as it pleases.

    `run_python("print(1)")` runs code, `run_python(["-m", "experiments.digits_lt", "--help"])`
    arguments. Returns the finished process with its stdout and stderr as text; fails, showing
    both, if it ends with another exit code than `expect` (negative: killed by that signal) or not
    within `timeout` seconds. In `env` a value of None removes the variable.
    """

    def run(
        code_or_args: str | Sequence[str],
        *,
        devices: int | None = 1,
        env: Mapping[str, str | None] | None = None,
        expect: int = 0,
        timeout: float = 300.0,
    ) -> "subprocess.CompletedProcess[str]":
        if isinstance(code_or_args, str):
            args = ["-c", textwrap.dedent(code_or_args)]
        else:
            args = [os.fspath(arg) for arg in code_or_args]
        emulated = "" if devices is None else f"--xla_force_host_platform_device_count={devices} "
        settings: dict[str, str | None] = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # A script's own folder is its first path: without this, an installed copy is found.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "XLA_FLAGS": f"{emulated}{_PATIENT} {_QUICK}",
            **(env or {}),
        }
        done = None
        try:
            done = subprocess.run(
                [sys.executable, *args],
                cwd=ROOT,
                env={name: value for name, value in settings.items() if value is not None},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as late:
            # The captured parts are bytes here, whatever `text` says.
            out, err = (_text(part) for part in (late.stdout, late.stderr))
            ending = f"not done in {timeout} s"
        else:
            out, err = done.stdout, done.stderr
            ending = f"exit code {done.returncode}, expected {expect}"
        if done is None or done.returncode != expect:
            pytest.fail(
                f"{ending}: {args}\n--- stdout\n{out[-4000:]}\n--- stderr\n{err[-8000:]}",
                pytrace=False,
            )
        return done

    return run


def _text(captured: bytes | str | None) -> str:
    return captured.decode(errors="replace") if isinstance(captured, bytes) else captured or ""


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`refuse("experiments.digits_lt", *flags, code=1)`: the last line that the command says.

    As `python -m` runs it, but in this process, which has imported everything already.
    """

    def run(module: str, *flags: object, code: int) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            patch.setattr(sys, "argv", [module, *map(str, flags)])
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(module, run_name="__main__")
        said = capsys.readouterr().err
        assert ended.value.code == code, said
        assert "Traceback" not in said
        return said.splitlines()[-1]

    return run


@pytest.fixture
def lean(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs neither draw nor measure what a step costs, but in tests marked in_full."""
    from experiments.command import launch

    if request.node.get_closest_marker("in_full") is None:
        monkeypatch.setattr(launch, "in_full", dict)


@pytest.fixture(scope="session")
def cifar_dir() -> str:
    """The data directory of tensorflow-datasets that holds a prepared CIFAR-100."""
    found = os.environ.get("TFDS_DATA_DIR")
    if not found:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared CIFAR-100 to read")
    if not (Path(found) / "cifar100").is_dir():
        pytest.skip(f"TFDS_DATA_DIR={found} holds no prepared cifar100")
    return found
