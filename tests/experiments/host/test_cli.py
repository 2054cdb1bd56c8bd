"""How a command ends: one sentence and an exit code."""

import errno
import os

import pytest

from experiments.host import cli
from experiments.host.errors import DataError, RunError


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
