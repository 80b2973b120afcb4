"""A wrong command is answered, and a finished run shown, before torch is imported, which takes seconds."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recombine.cli import command
from recombine.cli.entries import ENTRIES

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch:", "torch" in sys.modules)
"""
COMMANDS = {
    "main_flips.py --help": ["Groups, chosen by group=option", "save_every_minutes"],
    "main_flips.py models=[resnet20,lost.pt] pairs=none": ["there is no checkpoint", "pairs=none"],
    "main_pretrain.py method=pnc engine.epochs=soon": ["there is no method 'pnc'", "engine.epochs=soon"],
    "main_pretrain.py model=resnet21": ["there is no model 'resnet21'; did you mean 'resnet32' or 'resnet20'"],
    "main_pretrain.py model=resnet20 model.weights=null +model.depht=14 model.interpolation=lanczos": [
        *("did you mean 'depth'", "model.interpolation=lanczos: one of nearest"),
    ],
    "main_pretrain.py +dataset.fracton=0.5 dataset.fraction=2 dataset.storage=png dataset.classes=0": [
        "4 problems in the config",
        "unknown setting dataset.fracton: did you mean 'fraction'",
        *("dataset.fraction=2: a number", "dataset.storage=png: one of", "dataset.classes=0: a whole number"),
    ],
}


def without_torch(folder: Path, *words: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=folder, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("torch: False"), done.stdout + done.stderr
    return done


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_is_answered_without_torch(tmp_path, command):
    script, *words = command.split()
    done = without_torch(tmp_path, str(ROOT / script), *words)
    assert done.returncode == (0 if "--help" in words else 2)
    assert all(text in done.stdout + done.stderr for text in COMMANDS[command])


ALL = """
import sys
from recombine.cli import command
codes = {}
for words in eval(sys.argv[1]):
    try:
        codes[words] = command.main(words.split()) or 0
    except SystemExit as end:
        codes[words] = end.code
    assert "torch" not in sys.modules, words
print("codes:", codes)
"""
MISTAKES = {
    "predict --model resnet20 lost.png": "no such image: lost.png",
    "predict --model lost.safetensors .": "holds no image",
    "export --model lost.safetensors --patch lost.safetensors a.pt2": "there is no checkpoint",
    "export --model resnet20 a.pth": "names that end in .pt2, .onnx are needed",
    "artifacts list lost.safetensors": "there is no such file: lost.safetensors",
    "improve --images lost --network lost.pt --budget 3m": "--images lost: there is no such folder",
    "improve --images . --network cnn --zoo .": "--zoo .: this folder has no checkpoints",
    "table lost/table": "unknown table",
    "artifacts": "usage: recombine artifacts",
    "prepare dataset=lost": "there is no dataset 'lost'",
    "inspect_data lost": "there is no such folder: lost",
}


def test_every_entry_and_tool_is_helped_and_corrected_without_torch(tmp_path):
    wrong = {f"{entry} engine.epochs=soon method=none_such +nothing=1": "unknown setting nothing" for entry in ENTRIES}
    helped = [f"{name} --help" for name in (*ENTRIES, *command.TOOLS)]
    words = [*helped, *wrong, *MISTAKES]
    done = subprocess.run([sys.executable, "-c", ALL, repr(words)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = ast.literal_eval(done.stdout.rpartition("codes: ")[2])
    assert codes == dict.fromkeys(helped, 0) | dict.fromkeys([*wrong, *MISTAKES], 2)
    assert all(told in done.stderr for told in MISTAKES.values())
    assert done.stderr.count("unknown setting nothing") == len(ENTRIES)
    assert done.stdout.count("Groups, chosen by group=option") == len(ENTRIES)
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")}.issuperset(command.TOOLS)  # the same in a clone


@pytest.mark.parametrize("words", ["-m recombine.cli.command flips --help", "main_pretrain.py --help"])
def test_a_reader_that_goes_early_hears_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *words.split()]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_finished_run_is_shown_without_torch(fit, monkeypatch):
    words = ["--config-path", str(fit.config), "noise=0", "steps=3"]
    assert fit("noise=0", "steps=3").code == 0
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    out = without_torch(fit.folder, str(ROOT / "tests/core/fit/main_fit.py"), *words).stdout
    assert "finished before" in out and "published" in out and "1,000 images/s" in out


@pytest.mark.slow
def test_finished_runs_on_images_are_shown_without_torch(tmp_path):
    small = ["dataset=digits", "loader=torch", "loader.workers=0", "device=cpu", "logger=none"]
    train = [str(ROOT / "main_pretrain.py"), *small, "engine.epochs=0.2"]
    for model in ("cnn", "lenet5"):
        subprocess.run([sys.executable, *train, f"model={model}"], cwd=tmp_path, check=True, capture_output=True)
    assert "finished before" in without_torch(tmp_path, *train, "model=lenet5").stdout
    compare = [str(ROOT / "main_flips.py"), *small, "models=[cnn-digits-s0,lenet5-digits-s0]"]
    subprocess.run([sys.executable, *compare], cwd=tmp_path, check=True, capture_output=True)
    assert "finished before" in without_torch(tmp_path, *compare).stdout
    next(tmp_path.glob("weights/cnn*.safetensors")).touch()
    done = subprocess.run([sys.executable, *compare], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "finished before" not in done.stdout  # its files are other ones
