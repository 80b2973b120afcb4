"""Who may import what, and no host synchronisation inside a method's forward."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path for folder in ("src", "scripts", ".") for path in (ROOT / folder).glob("**/*.py" if folder != "." else "*.py")
]
LIBRARIES = {
    "hydra": (
        "src/__init__.py",
        "src/core/config.py",
        "src/core/problems.py",
        "src/core/entry.py",
        "src/core/help.py",
        "src/core/run.py",
        "scripts/",
    ),
    "omegaconf": (),
    "wandb": ("src/core/tracking.py",),
    "ffcv": ("src/data/ffcv.py", "src/data/write.py"),
    "timm": ("src/models/zoo.py",),
}
LIBRARIES["omegaconf"] = LIBRARIES["hydra"]
ALLOWED = {
    "core": {"core"},
    "data": {"data", "core.types", "core.errors", "core.files", "core.addressed"},
    "models": {"models", "core.types", "core.errors", "core.files", "core.addressed"},
    "report": {"report", "core"},
}
PAPER = {"core", "data", "models", "report.plots", "report.pictures", "report.style"}


def imported(path: Path) -> list[str]:
    """Dotted names that a file imports (`from a import b` is a.b), without what only type checkers read."""
    tree = ast.parse(path.read_text())
    checked = {
        n
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if node in checked:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    place = str(path.relative_to(ROOT))
    for name in imported(path):
        library, _, inner = name.partition(".")
        if library in LIBRARIES:
            assert place.startswith(LIBRARIES[library]), f"{place} imports {name}"
        if library == "src" and place.startswith("src/") and place != "src/__init__.py":
            part = place.split("/")[1]
            allowed = ALLOWED.get(part, PAPER | {part})
            assert any(f"{inner}.".startswith(f"{prefix}.") or f"{prefix}" == inner for prefix in allowed), (
                f"{place} imports {name}"
            )


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
