"""What a flag may be, to the last number, and how a command ends: a sentence and an exit code."""

import argparse
import errno
import io
import math
import os
import signal
import sys

import jax
import numpy as np
import pytest

from experiments.host import cli
from experiments.host.errors import DataError, RunError, Stopped
from experiments.host.stopping import StopRequest

# ---- numbers ------------------------------------------------------------------------------------

F32 = np.finfo(np.float32)


@pytest.mark.parametrize(
    ("bounds", "bad", "good"),
    [
        ({}, (), ("-1", "0", "1e6")),
        ({"least": 2}, ("1.999",), ("2", "2.001")),
        ({"over": 2}, ("2", "1"), ("2.001",)),
        ({"most": 2}, ("2.001",), ("2", "-7")),
        ({"below": 2}, ("2", "3"), ("1.999",)),
        ({"least": 1, "most": 3}, ("0", "4"), ("1", "3")),
        ({"over": 1, "infinite": True}, ("-inf", "nan", "1"), ("inf", "+inf", "INF", "1.5")),
        ({"most": 9}, ("inf", "+inf", "nan"), ()),
        ({"whole": True}, ("1.0", "1e3", "-"), ("-5", "+5", "0")),
        # What steps and parameters are counted in: 32 bits.
        ({"whole": True}, (str(2**32), str(-(2**32))), (str(2**32 - 1), str(1 - 2**32))),
        ({}, (repr(float(F32.max) * (1 + 1e-15)), "-3.5e38"), (repr(float(F32.max)),)),
        ({}, (repr(float(F32.tiny) * (1 - 1e-15)), "-1e-38"), (repr(float(F32.tiny)), "0")),
    ],
)  # fmt: skip
def test_a_number_is_taken_up_to_its_bounds(bounds, bad, good):
    kind = cli.number(**bounds)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    for text in good:
        found = kind(text)
        assert found == float(text) and type(found) is (int if bounds.get("whole") else float)


def test_why_a_number_is_refused_is_said():
    def said(text, **bounds):
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            cli.number(**bounds)(text)
        return str(refused.value)

    assert said("1e39") == "must be finite, got 1e39, which 32 bits cannot hold"
    assert said("1e-39") == "must be finite, got 1e-39, which is 0 in float32"
    assert said(str(2**32), whole=True, least=0) == (
        "must be at least 0, got 4294967296, which 32 bits cannot hold"
    )
    assert said("0.5", whole=True, least=1) == "must be a whole number and at least 1, got 0.5"
    assert said("7", whole=True, most=5, least=1) == "must be at least 1 and at most 5, got 7"
    assert said("7", below=5) == "must be finite and below 5, got 7"
    assert said("9" * 5000, whole=True, least=1).endswith(f"got {'9' * 40!r} (too long)")
    # A value is shown as it is up to 40 characters without a space.
    assert said("x" * 40) == f"must be finite, got {'x' * 40}"
    assert said("x" * 41) == f"must be finite, got {'x' * 40!r}"
    assert said("1 2") == "must be finite, got '1 2'"


def test_a_negative_zero_is_zero():
    assert math.copysign(1, cli.number()("-0")) == math.copysign(1, cli.number()("-0.0")) == 1


# ---- flags --------------------------------------------------------------------------------------


def parser_of(**needs):
    return cli.parser("What it is for.", {"rho": (), "seeds": (), **needs})


def test_flags_are_spelled_out_and_shown_with_what_they_are(capsys):
    parser = parser_of()
    parser.add_argument("--rho", type=cli.number(least=0), default=0.5, help="radius")
    parser.add_argument("--seeds", type=cli.seed, nargs="+", help="of runs")
    shown = " ".join(parser.format_help().split())
    assert "What it is for. options:" in shown
    assert "--rho RHO radius [at least 0] (default: 0.5)" in shown
    # Nothing is said of a default that there is not.
    assert shown.endswith("--seeds SEEDS [SEEDS ...] of runs [whole, at least 0 and at most "
                          "4294967295]")  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--see", "1"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --see 1\n"


def test_what_is_typed_is_taken_from_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["--seeds", "--rho", "2"])  # of that name, too
    parser = parser_of()
    parser.add_argument("--rho", type=cli.number(least=0), default=0.5)
    parser.add_argument("--seeds", type=cli.seed, nargs="+")
    assert vars(parser.parse_args()) == {"rho": 2.0, "seeds": None}
    assert vars(parser.parse_args([])) == {"rho": 0.5, "seeds": None}


def test_a_value_that_is_named_twice_is_told():
    args = argparse.Namespace(seeds=[1, 2, 1], rule=["a", "b"], rho_values=None)
    cli.refuse_twice(args, "rule", "rho_values")
    with pytest.raises(RunError, match=r"^--seeds names 1 twice$"):
        cli.refuse_twice(args, "rule", "rho_values", "seeds")
    args.rho_values = [0.5] * 3
    with pytest.raises(RunError, match=r"^--rho-values names 0\.5 twice$"):
        cli.refuse_twice(args, "rho_values")


@pytest.mark.parametrize("given", [None, "a/b"])
def test_compiled_programs_are_kept_in_the_users_cache(given, tmp_path, monkeypatch):
    """Those that took a second; a folder that was set is kept."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    home = {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / "caches"}
    try:
        for variable, cache in (("XDG_CACHE_HOME", "caches"), ("HOME", ".cache")):
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            monkeypatch.setenv(variable, str(home[variable]))
            for name, value in zip(names, (given, 7.0), strict=True):
                jax.config.update(name, value)
            cli.use_compilation_cache()
            assert [jax.config.values[name] for name in names] == (
                [str(tmp_path / cache / "imbsam_jax" / "xla"), 1.0] if given is None
                else [given, 7.0]
            )  # fmt: skip
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunError("no such thing"), "no such thing"),
        (DataError("damaged"), "damaged"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "a/b: No such file"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, said, capsys):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, None)
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(("coding", "printed"), [("utf-8", "±"), ("ascii", r"\xb1")])
def test_a_table_is_printed_whatever_the_output_is_coded_in(coding, printed, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), coding)
    monkeypatch.setattr(sys, "stdout", out)
    cli.run(lambda args: print("1.0±0.5"), None)
    out.flush()
    assert out.buffer.getvalue().decode() == f"1.0{printed}0.5\n"


def test_how_someone_wants_other_signs_written_is_left(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", "replace")
    monkeypatch.setattr(sys, "stdout", out)
    cli.run(lambda args: print("1.0±0.5"), None)
    out.flush()
    assert out.buffer.getvalue() == b"1.0?0.5\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_that_leaves_nothing_to_save_has_the_code_of_its_signal(number, code, capsys):
    def main(args):
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            stop.check()

    with pytest.raises(SystemExit) as end:
        cli.run(main, None)
    assert end.value.code == code
    assert capsys.readouterr().err == "stopped; nothing was written\n"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (Stopped("stopped at step 3", 75), 75, "stopped at step 3"),
        (KeyboardInterrupt(), 130, "interrupted before training began: nothing to save"),
        (ZeroDivisionError("a fault of ours"), 1, "ZeroDivisionError: a fault of ours"),
        (RunError("not so"), 1, "error: not so"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_other_ends_are_told_and_no_process_waits_for_the_others(
    ending, code, said, several, capsys, monkeypatch
):
    """Of several processes one that fails ends at once; a stop is answered by all of them."""
    left = []
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
    monkeypatch.setattr(os, "_exit", lambda code: left.append((code, out.buffer.getvalue())))

    def main(args):
        print("so far")
        raise ending

    with pytest.raises(SystemExit) as end:
        cli.run(main, None)
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == said
    ends_at_once = several and not isinstance(ending, Stopped)
    assert left == ([(code, b"so far\n")] if ends_at_once else [])
