"""Who may import what, no cycles between files, and no host synchronisation inside a method's forward."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "recombine"
FILES = sorted(PACKAGE.glob("**/*.py"))
LIBRARIES = {
    "hydra": ("cli/", "run/config.py"),
    "omegaconf": ("cli/", "run/config.py", "run/launch.py"),
    "wandb": ("run/wandb_logger.py",),
    "ffcv": ("data/ffcv.py", "data/write.py"),
    "timm": ("models/libraries.py", "models/detection.py", "models/segmentation.py", "models/zoo.py"),
}
BELOW = {
    "core": set(),
    "data": {"core"},
    "models": {"core"},
    "run": {"core"},
    "engine": {"core", "run"},
    "report": {"core"},
    "improve": {"core", "engine", "data", "models", "flips", "transfer", "attachments"},
    "cli": {
        "core",
        "run",
        "engine",
        "data",
        "models",
        "report",
        "flips",
        "transfer",
        "pnc",
        "stitch",
        "patch",
        "improve",
        "attachments",
    },
}
"""The rooms that each room may use beside itself; a paper uses PAPER, and transfer also flips, of the same paper."""
PAPER = {"core", "run", "engine", "data", "models", "report"}
PAPERS = {"flips", "pretrain", "transfer", "pnc", "stitch", "patch"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imported(path: Path, *, types: bool = False) -> list[str]:
    """Dotted names that a file imports when it is loaded or run; with `types`, also what only type checkers read."""
    tree = ast.parse(path.read_text())
    checked = {
        n
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if node in checked and not types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def used(path: Path, *, types: bool = False) -> set[str]:
    """Modules of this package that a file imports, the longest match of each name."""
    found = set()
    for name in imported(path, types=types):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    place = str(path.relative_to(PACKAGE))
    room = place.split("/")[0]
    for name in imported(path):
        library = name.partition(".")[0]
        if library in LIBRARIES:
            assert place.startswith(LIBRARIES[library]), f"{place} imports {name}"
    if room.endswith(".py"):  # the package's own face
        return
    allowed = BELOW.get(room, PAPER | ({"flips"} if room == "transfer" else set()))
    for name in used(path):
        other = name.removeprefix("recombine").lstrip(".").partition(".")[0]
        assert other in {"version", room} | allowed, f"{place} imports {name}"


@pytest.mark.parametrize("types", [False, True])
def test_no_file_imports_itself_over_others(types):
    # a package's face only hands names on; whoever imports one of its modules runs the face too, harmlessly
    graph = {name: used(path, types=types) for name, path in MODULES.items() if path.name != "__init__.py"}
    list(TopologicalSorter({name: others & graph.keys() for name, others in graph.items()}).static_order())


def methods(tree: ast.Module) -> list[ast.ClassDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("Method" in ast.unparse(base) for base in node.bases)
    ]


def test_no_forward_of_a_method_waits_for_the_device():
    seen = 0
    for path in FILES:
        for method in methods(ast.parse(path.read_text())):
            for function in (
                node for node in method.body if isinstance(node, ast.FunctionDef) and node.name == "forward"
            ):
                seen += 1
                calls = [
                    node.func.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                ]
                assert not {"item", "cpu", "tolist", "numpy"}.intersection(calls), f"{path.name}: {method.name}.forward"
    assert seen >= 1
