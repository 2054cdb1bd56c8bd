"""One run over two processes of four emulated devices each, against one process of eight."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

import tiny_records
from places import ROOT

SCRIPT = ROOT / "tests" / "cluster_run.py"


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit code, errors and report of each process."""

    codes: list[int]
    errors: list[str]
    reports: list[dict]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_records.make(tmp_path_factory.mktemp("data"), largest=30, smallest=2).folder


@pytest.fixture(scope="module")
def launch(folder, tmp_path_factory):
    """launch(out, processes, only={process: its own fields}, **fields of all) -> Ended"""
    root = tmp_path_factory.mktemp("runs")
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(out, processes, *, only={}, **asked):  # noqa: B006 - only read
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        asked |= {
            "processes": processes, "coordinator": f"localhost:{port}", "out": str(root / out),
            "data": str(folder),
        }  # fmt: skip
        flags = os.environ["XLA_FLAGS"]
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        running = [
            subprocess.Popen(
                [sys.executable, SCRIPT, json.dumps(asked | {"process": i} | only.get(i, {}))],
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "XLA_FLAGS": flags, "XDG_CACHE_HOME": cache},
            )
            for i in range(processes)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=400) for process in running]
        finally:
            for process in running:
                process.kill()
        reports = [
            json.loads(line.removeprefix("REPORT"))
            for out, _ in said
            for line in out.splitlines()
            if line.startswith("REPORT")
        ]
        return Ended([process.returncode for process in running], [e for _, e in said], reports)

    start.root = root
    return start


def metrics(launch, out):
    lines = (launch.root / out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same_numbers(one, other):
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_all", "test_few"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
        assert mine["skipped"] == theirs["skipped"] == 0


def check_pair(launch, rule, lean=False, **settings):
    """The same run by two processes and by one; every test image counted once by each."""
    name = "_".join([rule, *map(str, settings.values())])
    asked = {"rule": rule, "settings": settings, "lean": lean}
    two = launch(f"two_{name}", 2, **asked)
    assert two.codes == [0, 0], two.errors
    one = launch(f"one_{name}", 1, **asked)
    assert one.codes == [0], one.errors
    same_numbers(metrics(launch, f"two_{name}"), metrics(launch, f"one_{name}"))
    # Both processes end with the same parameters.
    assert two.reports[0]["sha"] == two.reports[1]["sha"]
    counts = []
    for out in ("two", "one"):
        rows = (launch.root / f"{out}_{name}" / "per_class.csv").read_text().splitlines()[1:]
        counts.append([int(row.split(",")[3]) for row in rows])
        report = json.loads((launch.root / f"{out}_{name}" / "report.json").read_text())
        assert sum(counts[-1]) == 16 and report["skipped_test_images"] == 0
    return two


@pytest.mark.slow  # quickly: eight devices of one process, tests/test_devices.py
def test_two_processes_are_one(launch):
    """Also batch normalisation over the whole batch, and a last one that is padded."""
    check_pair(launch, "imbsam", lean=True, jitter=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "codes"), [("SIGTERM", [143, 143]), ("SIGKILL", [1, -9])])
def test_a_run_survives_the_end_of_one_process(launch, signal, codes):
    """Asked to stop, both stop at the same step; of one that is killed, the other says so."""
    fields = {"rule": "imbsam", "settings": {"jitter": 0.4}}
    whole = launch(f"whole_{signal}", 2, **fields)
    cut = launch(signal, 2, only={1: {"kill_at": 7, "signal": signal}}, **fields)
    assert cut.codes == codes, cut.errors
    last = "one of them has ended" if signal == "SIGKILL" else "saved. Continue with"
    assert last in cut.errors[0]
    again = launch(signal, 2, resume=True, **fields)
    assert again.codes == [0, 0], again.errors
    assert [report["sha"] for report in again.reports] == [whole.reports[0]["sha"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "parallel"), [("sgd", "jit"), ("sam", "jit"), ("imbsam", "pmap")])
def test_every_rule_and_pmap_over_processes(launch, rule, parallel):
    check_pair(launch, rule, parallel=parallel)
