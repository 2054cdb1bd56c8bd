"""The site: built strictly, complete, and read without a request to anywhere else."""

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import ModuleType

import pytest
import tables

import imbsam_jax as ij
from experiments.command import loss_flags, method_flags, presets
from imbsam_jax import ascent
from places import ROOT

hooks = pytest.importorskip("hooks", reason="the extra [docs] is not installed")

# What a browser fetches by itself, and by which attribute.
FETCHED = {
    "script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src",
    "audio": "src", "embed": "src", "object": "data", "use": "href", "image": "href",
}  # fmt: skip


class Requests(HTMLParser):
    """Addresses elsewhere that a page makes a browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        address = given.get(FETCHED.get(tag, "")) or ""
        known = tag == "link" and given.get("rel") in ("canonical", "prev", "next")
        if re.match(r"(https?:)?//", address) and not known:
            self.found.append((tag, address))


def requests(html):
    parser = Requests()
    parser.feed(html)
    return parser.found


def build(out, *more, **environment):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    return subprocess.run(
        [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 25
    for path, html in pages.items():
        assert not requests(html), path
        assert "arithmatex" not in html, path  # every formula became MathML
    for path in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text()), path
    reference = pages[tmp_path / "api.html"]
    for module in (ij, *public_modules()):
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                assert re.search(rf'id="imbsam_jax\.[\w.]*\b{name}"', reference), (module, name)
    shown = {*re.findall(r'id="imbsam_jax\.([\w.]+)"', reference)}
    assert "experimental.remembered.value_and_grad" in shown
    assert not shown & {f"ascent.{name}" for name in vars(ascent) if name not in ascent.__all__}
    assert "<math" in pages[tmp_path / "how-it-works.html"]
    assert "ImbSAM - SGD over all classes, paired:" in pages[tmp_path / "first-steps.html"]


def public_modules():
    found = [thing for name in ij.__all__ if isinstance(thing := getattr(ij, name), ModuleType)]
    return [*found, ij.nnx]


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_modules_have_their_place_in_the_reference(module):
    assert f"::: {module.__name__}\n" in (ROOT / "docs" / "api.md").read_text()


def test_requests_are_seen():
    seen = requests('<img src="//a.b/c.png"><script src="x.js"></script><a href="https://a.b">')
    assert seen == [("img", "//a.b/c.png")]


def test_tables_hold_what_the_code_holds():
    """By construction: a new rule, loss or preset is in them without an edit."""
    for text, names in (
        (tables.rules(), method_flags.rule_names()),
        (tables.losses(), loss_flags.LOSSES),
        (tables.of_papers(), [name for table in presets.TABLES.values() for name in table]),
    ):
        rows = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
        assert sorted(set(rows) - {"--loss", "--preset"}) == sorted(set(names))
    imbsam = next(line for line in tables.rules().splitlines() if "`imbsam`" in line)
    assert [cell.strip() for cell in imbsam.split("|")][3:7] == ["1 0 0", "0 1 1", "0.05", "2 + 3"]


def test_readme_has_the_rules_as_their_functions_have_them():
    text = (ROOT / "README.md").read_text()
    assert tables.in_readme(text) == text, "run `make readme`"
    assert tables.in_readme(text.replace("| `gsa` | Grouped", "| `gsa` | Split")) == text


@pytest.mark.parametrize(
    "page, written, there",
    [
        ("cost.md", "../results/step_cost/README.md", "results/step_cost/README.md"),
        ("how-it-works.md", "../CONTRIBUTING.md", "contributing.md"),
        ("index.md", "docs/cost.md", "cost.md"),
        ("index.md", "results/digits_lt/per_class.png", "results/digits_lt/per_class.png"),
        ("results/README.md", "../docs/choosing.md", "../choosing.md"),
        ("results/digits_lt/README.md", "all_rules/gains.png", "all_rules/gains.png"),
    ],
)
def test_links_are_moved(page, written, there):
    class Page:
        class file:
            src_uri = page

    text = f"[a]({written}#b), `[a]({written})` and $[a](x)$, [c](#d)"
    moved = hooks.on_page_markdown(text, Page)
    assert moved == f"[a]({there}#b), `[a]({written})` and $[a](x)$, [c](#d)"


def test_formulas_become_mathml():
    html = '<p><span class="arithmatex">\\(a &lt; \\rho\\)</span></p>'
    made = hooks.on_page_content(html)
    assert made.startswith('<p><math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert "<mi>&#x003C1;</mi>" in made and "arithmatex" not in made
