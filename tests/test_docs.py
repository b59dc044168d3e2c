"""The programs in README and guide run, and print what is shown beneath them; numbers too, where nothing is trained."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d_,.]*(e[-+]?\d+)?")
LINK = re.compile(r"\]\(([^)#]+)(?:#([\w-]+))?\)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def words(text: str) -> str:
    """The text with numbers and runs of blanks made equal."""
    return " ".join(NUMBER.sub("#", text).split())


def same_numbers(printed: str, shown: str) -> bool:
    """Whether the numbers agree to one and a half of the last digit that is shown, powers of ten to one of ten."""
    for one, two in zip(
        *([found.group().rstrip(".,") for found in NUMBER.finditer(text)] for text in (printed, shown)), strict=True
    ):
        there, here = float(one.replace(",", "")), float(two.replace(",", ""))
        digits = len(two.partition(".")[2])
        near = here / 11.0 < there < here * 11.0 if "e" in two else abs(there - here) <= 1.5 * 10.0**-digits
        if not near:
            return False
    return True


def anchors(page: Path) -> set[str]:
    """Names that the headings of a page give to links."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/guide.md", "docs/training.md", "docs/dynamics.md", "docs/measurement.md"]
)
def test_programs_run_and_print_what_is_shown(page, tmp_path, monkeypatch):
    learned = pytest.importorskip("thermodiff.learned")
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert any(language == "python" for language, _ in blocks)
    namespace = {"__name__": "program"}
    for (language, code), (below, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), learned.torch_threads(1):
            exec(compile(code, page, "exec"), namespace)
        if below == "text":
            assert words(printed.getvalue()) == words(shown)
            assert page != "docs/dynamics.md" or same_numbers(printed.getvalue(), shown), printed.getvalue()
    pytest.importorskip("matplotlib.pyplot").close("all")


def test_readme_has_the_two_commands_that_set_up():
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert "pip install -c constraints.txt '.[learned,plot]' && thermodiff entropy" in lines
    assert "pip install -c constraints.txt '.[dev]' && pytest" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file = (page.parent / target).resolve()
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_index_links_every_page():
    targets = {(ROOT / "docs" / target).resolve() for target, _ in LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert {page.resolve() for page in PAGES if page.name != "index.md"} <= targets
