"""What a list says of each set, as the page on studies has it, and the bounds of what it may."""

import pytest

from experiments.data.set_lists import column_of, cuts_of, entries, name_of
from experiments.host.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder of eight sets, named out of order."""
    (tmp_path / "many").mkdir()
    for name in "hbdafceg":
        (tmp_path / "many" / f"{name}.npz").touch()
    return tmp_path


def test_a_list_in_toml_is_read_set_by_set(folder, monkeypatch):
    monkeypatch.setenv("PLACE", "/data")
    path = folder / "list.toml"
    path.write_text("""
        [[set]]
        data = "$PLACE/a b.csv"
        test = "other.csv"
        test-share = 0.5
        no-tune = true
        resumable = false
        [[set]]
        data = "sklearn:wine"
        name = ["w"]
        cut = [0, 5]
        [[set]]
        data = "many"
        family = "letters"
        [families]
        drinks = ["w"]
    """)
    assert list(entries([str(path)])) == [
        {
            "data": str(folder / "/data/a b.csv"), "test": str(folder / "other.csv"),
            "test_share": 0.5, "no_tune": True, "name": "a_b", "cut": [0],
        },
        {"data": "sklearn:wine", "name": "w", "cut": [0, 5], "family": "drinks"},
        *(
            {"data": str(folder / f"many/{one}.npz"), "name": one, "cut": [0], "family": "letters"}
            for one in "abcdefgh"
        ),
    ]  # fmt: skip


def test_a_list_of_lines_is_read_line_by_line(folder):
    path = folder / "list.txt"
    path.write_text("a.csv --text said told --no-tune --label kind  # a comment\n\nb.csv\n")
    assert list(entries([str(path), "c.csv"])) == [
        {
            "data": str(folder / "a.csv"), "text": ["said", "told"], "no_tune": True,
            "label": ["kind"], "name": "a", "cut": [0],
        },
        {"data": str(folder / "b.csv"), "name": "b", "cut": [0]},
        {"data": "c.csv"},
    ]  # fmt: skip
    names = [{"data": str(folder / f"many/{one}.npz")} for one in "abcdefgh"]
    assert list(entries([str(folder / "many")])) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("set = [{data = 'a'}, 3]", r"it needs a \[\[set\]\] for each"),
        ("set = [{data = 3}]", r'a set has no data = "PATH"'),
        ("set = [{data = 'a'}]\n[families]\nx = ['a']\ny = 'a'", "needs a list of names"),
        ("set = [{data = 'a', text = ['x', {}]}]", "text = .* is no word, number or list of these"),
        ("set = [{data = 'a', family = []}]", r"family = \[\] must be one word"),
        ("set = [{data = 'a', family = ''}]", r"family = '' must be one word"),
        ("set = [{data = 'a', family = ['b', 'c']}]", "must be one word"),
        ("set = [{data = 'a', tune = false}]", "tune = false is said as no_tune = true"),
        ("set = [{data = 'a$.csv'}]", r"a\$.csv has a \$ that begins no variable"),
        ("set = [{data = '${NOWHERE_9}.csv'}]", "needs the variable NOWHERE_9 to be set"),
        ("set = [{data = 'a', family = 'x'}]\n[families]\ny = ['a']", "family x, and .* of y$"),
        ("set = [{data = 'a'}]\n[families]\nx = ['a', 'b']", "b of the family x is no set"),
    ],
)
def test_a_list_of_which_a_part_is_wrong_is_refused(tmp_path, text, says):
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(DataError, match=says):
        list(entries([str(tmp_path / "l.toml")]))


def test_a_family_said_twice_alike_is_one(tmp_path):
    (tmp_path / "l.toml").write_text(
        "set = [{data = 'a', family = ['x'], text = ['b', 3, 0.5], tune = true}]\n"
        "[families]\nx = ['a', 'a']"
    )
    (found,) = entries([str(tmp_path / "l.toml")])
    assert found["family"] == "x" and found["text"] == ["b", 3, 0.5] and found["tune"] is True


@pytest.mark.parametrize(
    ("value", "found"),
    [(0, [0]), ("20", [20]), ([0, 1, 1000], [0, 1, 1000]), (["5", 2.5], [5, 2.5])],
)
def test_cuts_are_none_or_from_1_to_1000(value, found):
    assert cuts_of(value) == found


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.999, "from 1 to 1000"), ([20, 1000.5], "from 1 to 1000"), (-1, "from 1 to 1000"),
        ([], "no list of numbers"), ([2, True], "no list of numbers"), ("x", "no list of numbers"),
        ([20, "20"], "twice"),
    ],
)  # fmt: skip
def test_other_cuts_are_refused(value, says):
    with pytest.raises(DataError, match=says):
        cuts_of(value)


@pytest.mark.parametrize(
    ("each", "name"),
    [
        ({"data": "sklearn:wine"}, "wine"), ({"data": "x/a b.csv"}, "a_b"),
        ({"data": "a.csv", "name": "b"}, "b"), ({"data": "a.csv", "name": ["b"]}, "b"),
        ({"data": "a.csv", "name": "x" * 100}, "x" * 100), ({"data": "é+=,-.csv"}, "é+=,-"),
    ],
)  # fmt: skip
def test_the_name_of_a_set(each, name):
    assert name_of(each) == name


@pytest.mark.parametrize("name", [["b", "c"], [], 3, "", "x" * 101, "..", "a/b", "字" * 67])
def test_what_is_no_name(name):
    """A name of 201 bytes is none of a file once a cut and an ending are behind it."""
    with pytest.raises(DataError, match=r"of a set must be up to 100 letters.* another one in a"):
        name_of({"data": "a.csv", "name": name})
    assert name_of({"data": "a.csv", "name": "字" * 66}) == "字" * 66


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("text", "a", ["a"]), ("text", ["a", "b"], ["a", "b"]), ("text", [], []),
        ("label", "a", "a"), ("id", ["a"], "a"),
    ],
)  # fmt: skip
def test_columns_are_words(name, value, found):
    assert column_of(name, value) == found


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("label", ["a", "b"], "must be one word"), ("label", [], "must be one word"),
        ("label", 3, "must be one word"), ("text", ["a", 3], "must be a list of columns"),
    ],
)  # fmt: skip
def test_what_is_no_column(name, value, says):
    with pytest.raises(DataError, match=says):
        column_of(name, value)
