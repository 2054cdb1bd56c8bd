"""One process to a folder: where one may be made, and who owns it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Any

from experiments.host.errors import RunError, cannot_write, reason

LOCK = ".lock"
# What a kill within the first write leaves: of a run, a comparison or a sweep its config.json.
_NOTHING = {LOCK, "config.json.partial"}


class Lock:
    """Owns a folder until closed, so that no two processes write the same one; makes it.

    Args:
      path: the folder.
      so: what to do where another process owns it.

    Raises:
      RunError: it cannot be made or written, or another process owns it.
    """

    def __init__(self, path: Path, so: str = "wait for it, or choose another --out"):
        check_out(path)
        self._path, self._fresh = path, not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Not through a link, whose target would be taken for ours; not waiting for a pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(path / LOCK, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP and (path / LOCK).is_symlink():
                raise RunError(f"{path / LOCK} is a symbolic link: remove it") from error
            raise cannot_write(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise RunError(f"{path / LOCK} is no file: remove it")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"cannot lock {path}: {reason(error)}") from error
            raise RunError(f"{path} is in use by another process: {so}") from error
        except RunError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if failed and self._fresh and os.listdir(self._path) == [LOCK]:  # nothing came of it
            (self._path / LOCK).unlink()
            self._path.rmdir()
        self.close()


def check_out(path: Path) -> None:
    """RunError for a path at which no folder could be made, written and named."""
    text = os.fspath(path)
    if not is_utf8(text) or "\0" in text:
        raise RunError(f"{text!r} is not UTF-8 text: choose another --out")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise RunError(f"{path} is a URL, but only folders can be written: choose another --out")
    try:
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is no folder: choose another --out")
    except OSError as error:  # a name that is too long, a folder above that is closed to us
        raise cannot_write(path, error) from error


def holds_something(path: Path) -> bool:
    """Whether there is a folder, with more in it than its lock and half a first file."""
    check_out(path)
    try:
        return path.exists() and not _NOTHING.issuperset(os.listdir(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error


def refuse_to_fill(path: Path, overwrite: bool) -> None:
    """RunError for a folder with something in it, unless that may be replaced."""
    if holds_something(path) and not overwrite:
        raise RunError(f"{path} is not empty: pass --overwrite, or choose another --out")


def is_utf8(text: str) -> bool:
    """Whether a file can hold it: names of files on Linux may be of any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
