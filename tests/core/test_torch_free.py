"""A wrong command is answered before torch is imported, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_is_answered_without_torch(tmp_path, command):
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / script), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == (0 if "--help" in words else 2)
    assert all(text in done.stdout + done.stderr for text in COMMANDS[command])
    assert done.stdout.rstrip().endswith("torch: False")
