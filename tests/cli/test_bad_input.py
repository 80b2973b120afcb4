"""Commands that were accepted, or ended in a traceback: each is one sentence before anything starts."""

import re
from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name

import pytest

from recombine.cli import paths
from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR, write_atomically
from recombine.run.config import validate

CLI = Path(paths.__file__).parent
SCRIPTS = Path(__file__).parents[2] / "scripts"
WRONG = [
    ("multi_teacher", "dataset.augment={a: b}", "dataset.augment={a: b}: text or a list of settings"),
    ("multi_teacher", "engine.max_eval_batches=0", "engine.max_eval_batches=0: a whole number of at least 1"),
    ("pretrain", "optimizer=[]", "optimizer"),
    ("pretrain", "dataset=[[1]]", "dataset=[[1]]: names of dataset are needed, such as dataset="),
    ("flips", "logger=[1]", "logger=[1]: names of logger are needed, such as logger="),
    ("pretrain", "~engine", "~engine: this entry needs it"),
    ("pretrain", "~optimizer", "~optimizer: this entry needs it"),
    ("pretrain", "~engine.epochs", "~engine.epochs: this entry needs it; change it by engine.epochs=..."),
    ("pretrain", "dataset.class_subset=[]", "dataset.class_subset=[]: a list of whole numbers or text, or null"),
    ("pretrain", "engine.epochs=nan", "engine.epochs=nan: a number of at least 0"),
    ("pretrain", "engine.epochs=1e400", "engine.epochs=inf: a number of at least 0"),
    ("pretrain", "optimizer.lr=-1", "optimizer.lr=-1: a number of at least 0"),
    ("pretrain", "optimizer.lr=nan", "optimizer.lr=nan: a number of at least 0"),
    ("pretrain", "optimizer.momentum=5", "optimizer.momentum=5: a number of at least 0 and at most 1"),
    ("pretrain", "output_root=FILE", "output_root=FILE: a folder is needed"),
    ("pretrain", "cache_root=/dev/null", "cache_root=/dev/null: a folder is needed"),
    ("pretrain", "output_root=FILE/x", "output_root=FILE/x: a folder is needed, and FILE is a file"),
    ("flips", "weights_root=", "weights_root=: a folder is needed; weights_root=. is the one where you are"),
    ("pretrain", "save_as=../../x", "save_as=../../x: a name is needed that stays in its folder"),
    ("pretrain", "save_as=", "save_as"),
    ("pretrain", f"save_as={'x' * 300}", f"save_as={'x' * 300}: a name of at most 120 bytes"),
    ("pretrain", "output_root='~/x'", "output_root=~/x: ~ means your home in a command only"),
    ("pretrain", "dataset.name=../x", "dataset.name=../x: a name is needed that stays in its folder"),
    ("flips", "models=[null,null]", "models=[null,null]"),
    ("flips", "models=[[a],[b]]", "models=[[a],[b]]"),
    ("transfer", "method=null", "method=null"),
    ("transfer", "dataset.fraction_seed=null", "dataset.fraction_seed=null: a whole number"),
    ("pnc", "method.name=[1]", "method.name=[1]: text"),
    ("pnc", "stage_epochs=nan", "stage_epochs=nan"),
    ("patch", "tasks=[{}]", "name: cannot be resolved"),
    ("patch", "model.mean=abc", "model.mean=abc"),
    ("patch", "task.test_fraction=0.1", "task.test_fraction=0.1: task has no default for test_fraction; +task.test_fr"),
    ("stitch", "retrain.batch_size=0", "retrain.batch_size=0: a whole number of at least 1"),
]


@pytest.mark.parametrize(("entry", "override", "told"), WRONG, ids=[f"{entry} {text}" for entry, text, _ in WRONG])
def test_it_is_told_before_anything_starts(tmp_path, monkeypatch, entry, override, told):
    monkeypatch.chdir(tmp_path)
    write_atomically(tmp_path / "FILE", "a file")
    found = compose_all(str(CONFIG_DIR), ENTRIES[entry].config, [override])
    problems = list(found.problems)
    if found.cfg is not None:
        problems += validate(found.cfg, resolve_name(ENTRIES[entry].settings), rules=False)
    assert any(problem.startswith(told) for problem in problems), problems


READ = [
    ("pretrain", "model.weights=FILE", "FILE cannot be read: it is empty"),
    ("pretrain", "weights_root=/proc/x", "cannot write /proc/x: "),
    ("flips", "dataset.label_map=FILE", "dataset.label_map=FILE: cannot read"),
    ("flips", "dataset.label_map=FOLDER", "dataset.label_map=FOLDER: cannot read"),
    ("flips", "dataset.label_map=map.json", "is no label map"),
]


@pytest.mark.parametrize(("entry", "override", "told"), READ, ids=[f"{entry} {text}" for entry, text, _ in READ])
def test_what_files_hold_is_told_before_anything_starts(tmp_path, monkeypatch, entry, override, told):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    for place in (tmp_path, folder):
        (place / "FILE").touch()
    (folder / "FOLDER").mkdir()
    (folder / "map.json").write_text("[0, 1.5]")
    cfg = compose_all(str(CONFIG_DIR), ENTRIES[entry].config, ["dataset=digits", override]).cfg
    problems = validate(cfg, resolve_name(ENTRIES[entry].settings))
    assert any(told in problem for problem in problems), problems


TYPES = [
    (paths.filled, "", "it is empty; . is the folder where you are"),
    (paths.file, "FOLDER", "a file is needed, and this is a folder: FOLDER"),
    (paths.folder, "FILE", "a folder is needed, and this is a file: FILE"),
    (paths.existing_file, "nowhere", "there is no such file: nowhere"),
    (paths.existing_folder, "nowhere", "there is no such folder: nowhere"),
    (paths.existing_folder, "FILE", "a folder is needed"),
    (paths.new_file, "FOLDER", "a file is needed"),
    (paths.new_file, "FILE/x", "cannot write FILE: "),
    (paths.new_file, "/proc/x", "cannot write /proc: "),
    (paths.new_folder, "FILE", "a folder is needed"),
    (paths.new_folder, "FILE/x", "cannot write FILE/x: "),
    (paths.new_folder, "/proc/x", "cannot write /proc/x: "),
]


@pytest.mark.parametrize(("kind", "text", "told"), TYPES)
def test_paths_of_tools_are_looked_at_with_the_command(tmp_path, monkeypatch, kind, text, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(told)}"):
        kind(text)
    for path in ("FILE", "FOLDER", "new/x"):
        with suppress(ArgumentTypeError):
            assert str(kind(path)) == path
    assert not (tmp_path / "new").exists()


def test_every_path_of_every_tool_has_such_a_type():
    """An option that is a path by its name or help, and takes any text, would be looked at too late."""
    for file in (*CLI.glob("*.py"), *SCRIPTS.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert "type=Path" not in text or file.name == "mutate.py", file  # which may not import the package


def test_files_have_the_mode_of_the_umask(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
