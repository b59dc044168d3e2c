"""Rules of the source tree: layers, lazy import, size of files, a test for every module."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import thermodiff

PACKAGE = Path(thermodiff.__file__).parent
ROOT = PACKAGE.parent
TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
OWN = [path for path in MODULES if path.name not in {"__init__.py", "__main__.py"}]
# What each layer may import, from the top; names in one entry are beside each other and do not import each other.
LAYERS = [
    {"cli", "__main__"}, {"experiments"}, {"bench"}, {"plotting"}, {"cases"}, {"learned"}, {"integrate"}, {"diffusion"}, {"processes"},
    {"densities"}, {"fields"}, {"accounting", "transport"}, {"schedules"}, {"kernels"}, {"_tasks", "_progress"}, {"_check"},
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The rivals in bench are other people's packages.
HOMES = {
    "numba": {"kernels", "bench"}, "llvmlite": {"kernels"}, "torch": {"learned", "bench"}, "matplotlib": {"plotting", "cli"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file, except for the type checker only."""
    tree = ast.parse((PACKAGE / path).read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def layer(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", OWN, ids=str)
def test_every_module_has_a_test_file(path: Path) -> None:
    # One file may serve a package that has no folder of tests.
    folder = path.parent.name
    wanted = path.stem.strip("_") if folder == "" or (TESTS / folder).is_dir() else folder
    assert any(wanted in test.stem for test in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_source_file_is_above_500_lines(path: Path) -> None:
    assert len((PACKAGE / path).read_text().splitlines()) <= 500


def test_no_test_file_is_above_500_lines() -> None:
    long = [path.name for path in TESTS.rglob("*.py") if len(path.read_text().splitlines()) > 500]
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_heavy_packages_stay_in_their_layer(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert {name for name in roots if layer(path) not in HOMES.get(name, {layer(path)})} == set()


@pytest.mark.parametrize("path", OWN, ids=str)
def test_imports_go_down_the_layers(path: Path) -> None:
    here = layer(path)
    below = {name.split(".")[1] for name in imports(path) if name.startswith("thermodiff.")} - {here}
    assert {name for name in below if name in RANK and RANK[name] <= RANK[here]} == set()


def test_accounting_and_schedules_are_pure_numpy() -> None:
    for path in OWN:
        if layer(path) in {"accounting", "schedules"}:
            outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"thermodiff", "numpy"}
            assert outside == set(), path


def test_kernels_know_none_of_the_objects() -> None:
    for path in OWN:
        if layer(path) == "kernels":
            own = {name.split(".")[1] for name in imports(path) if name.startswith("thermodiff.")}
            assert own <= {"kernels", "_tasks", "_check"}, path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout


def test_importing_the_package_leaves_the_heavy_packages_out() -> None:
    code = "import sys, thermodiff; print([n for n in ('numba', 'torch', 'matplotlib', 'scipy') if n in sys.modules])"
    assert run(code).strip() == "[]"


def test_importing_the_package_takes_less_than_a_quarter_second_more_than_numpy() -> None:
    def seconds(name: str) -> float:
        code = f"import time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"
        return min(float(run(code)) for _ in range(3))

    assert seconds("thermodiff") < seconds("numpy") + 0.25


@pytest.mark.parametrize("name", thermodiff.__all__)
def test_every_public_name_resolves(name: str) -> None:
    home = thermodiff._HOME.get(name)
    if home == "plotting" and find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    assert getattr(thermodiff, name) is not None


def test_the_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        (alias.name, node.module) for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(name, f"thermodiff.{home}") for name, home in thermodiff._HOME.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = thermodiff.nonsense


def test_dir_lists_the_public_names() -> None:
    assert dir(thermodiff) == sorted(thermodiff.__all__)
