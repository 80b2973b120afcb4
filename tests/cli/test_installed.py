"""The built wheel in a fresh environment, away from the clone, beside a project that has a `src` of its own."""

import ast
import os
import re
import site
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a program of a new environment in a folder with somebody's own `src` package."""
    place = tmp_path_factory.mktemp("installed")
    wheels, project = place / "wheels", place / "project"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    venv.create(place / "env", with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place / "env")}))
    (wheel,) = wheels.glob("recombine-*.whl")
    target = ["--python", place / "env" / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, *target, wheel], check=True)
    # The libraries are those of this environment; its link to the clone is not followed from a .pth file.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    (project / "src" / "mine").mkdir(parents=True)
    (project / "src" / "__init__.py").write_text("NAME = 'not recombine'\n")
    (project / "src" / "mine" / "__init__.py").write_text("")

    def run(program, *words):
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [place / "env" / "bin" / program, *words]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, env=clean)

    return run


IMPORTS = """
import sys, recombine, src
from recombine import patch, pnc, stitch
from recombine.cli.command import main
print(patch.attach.__name__, pnc.attach.__name__, stitch.load.__name__, recombine.load.__name__)
print(recombine.__file__, src.NAME, flush=True)
sys.exit(main(sys.argv[1:]))
"""


def test_it_is_the_wheel_and_not_the_clone_and_an_entry_finds_its_configs(installed):
    options = ["model=cnn", "loader=torch", "logger=none", "engine.max_steps=2", "device=cpu"]
    result = installed("python", "-c", IMPORTS, "pretrain", *options)
    assert result.returncode == 0, result.stderr
    assert str(ROOT) not in result.stdout and "not recombine" in result.stdout
    assert "pretrain model=cnn" in result.stdout and "accuracy" in result.stdout


def test_help_and_tools(installed):
    assert "experiments" in installed("recombine", "--help").stdout
    assert "method: " in installed("recombine", "transfer", "--help").stdout
    assert "transfer/pairs" in installed("recombine", "table", "--list").stdout
    wrong = installed("recombine", "trnsfer")
    assert wrong.returncode == 2 and "did you mean 'transfer'" in wrong.stderr


PACKAGE_OF = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
OPTIONAL = {"ffcv", "numba", "open_clip", "recombine", "onnx", "onnxruntime", "optuna", "submitit", "wandb_workspaces"}
"""Imported only where they are used, with a message or another way where they are not installed."""
BROUGHT = {
    "markupsafe": "jinja2",
    "pydantic_core": "pydantic",
    "annotated_types": "pydantic",
    "huggingface_hub": "timm",
}


def test_every_library_that_is_imported_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~;\[ ]", text)[0].lower() for text in project["dependencies"]}
    imported = set()
    for path in (ROOT / "src" / "recombine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    libraries = imported - set(sys.stdlib_module_names) - OPTIONAL
    wanted = {PACKAGE_OF.get(BROUGHT.get(name, name), BROUGHT.get(name, name)) for name in libraries}
    wanted = {"hydra-core" if name == "hydra" else name for name in wanted}
    assert wanted <= declared, f"not in pyproject.toml: {wanted - declared}"
