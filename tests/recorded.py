"""Text that was read once and stays as it was, in a file beside the tests that make it."""

from pathlib import Path


def check(kept: Path, text: str, folder: Path) -> None:
    """Fails where it is another text, which is then in the folder: to be read, and kept instead."""
    new = folder / kept.name
    new.write_text(text)
    assert text == kept.read_text(), f"{new} is not {kept}"
