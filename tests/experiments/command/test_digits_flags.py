"""Where the entries on digits write, and the settings that their flags ask for."""

import pytest

from experiments import digits_lt
from experiments.command import digits_flags
from experiments.host.errors import RunError
from experiments.run.settings import Settings


def args_of(*flags):
    return digits_lt.arguments().parse_args([*map(str, flags)])


def test_a_folder_with_something_in_it_is_not_written_unasked(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match="is not empty: pass --overwrite"):
        digits_flags.checked(args_of("--out", tmp_path))
    asked = args_of("--out", tmp_path, "--overwrite", "--seeds", 5, 3)
    assert digits_flags.checked(asked) == (tmp_path, [5, 3])
    assert digits_flags.checked(args_of("--out", tmp_path / "new"))[1] == list(range(20))


def test_the_settings_that_the_flags_ask_for():
    flags = ["--epochs", 3, "--batch-size", 7, "--lr", 0.5, "--momentum", 0.25, "--mixup", 2]
    flags += ["--weight-decay", 0.125, "--weight-decay-inside", "--eta", 9, "--strict"]
    args = args_of("--out", "x", "--rule", "imbsam", *flags)
    expected = Settings(
        epochs=3, batch_size=7, lr=0.5, schedule="cosine", momentum=0.25, weight_decay=0.125,
        mixup=2.0, weight_decay_inside=True, eta=9.0, strict=True,
    )  # fmt: skip
    assert digits_flags.settings_of(args, "vs") == expected
    assert digits_flags.settings_of(args, "ldam").classifier == "normalised"
    args.lr = -1.0
    with pytest.raises(RunError, match="--lr must be finite and positive"):
        digits_flags.settings_of(args, "vs")
