"""How a command ends: one sentence and an exit code."""

import errno
import io
import os
import signal
import sys

import jax
import pytest

from experiments.host import cli
from experiments.host.errors import DataError, RunError, Stopped
from experiments.host.stopping import StopRequest


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
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_other_ends_are_told_and_no_process_waits_for_the_others(
    ending, code, said, several, capsys, monkeypatch
):
    """Of several processes one that fails ends at once; a stop is answered by all of them."""
    left = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
    monkeypatch.setattr(os, "_exit", left.append)

    def main(args):
        raise ending

    with pytest.raises(SystemExit) as end:
        cli.run(main, None)
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert left == ([code] if several and not isinstance(ending, Stopped) else [])
