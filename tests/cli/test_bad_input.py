"""Commands that were accepted, or ended in a traceback: each is one sentence before anything starts."""

from pkgutil import resolve_name

import pytest

from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR, write_atomically
from recombine.run.config import validate

WRONG = [
    ("multi_teacher", "dataset.augment={a: b}", "dataset.augment={a: b}: text or a list of settings"),
    ("multi_teacher", "engine.max_eval_batches=0", "engine.max_eval_batches=0: a whole number of at least 1"),
    ("pretrain", "optimizer=[]", "optimizer"),
    ("pretrain", "dataset=[[1]]", "dataset=[[1]]: names of dataset are needed, such as dataset="),
    ("flips", "logger=[1]", "logger=[1]: names of logger are needed, such as logger="),
    ("pretrain", "~engine", "~engine: this entry needs it"),
    ("pretrain", "~optimizer", "~optimizer: this entry needs it"),
    ("pretrain", "engine.epochs=nan", "engine.epochs=nan: a number of at least 0"),
    ("pretrain", "engine.epochs=1e400", "engine.epochs=inf: a number of at least 0"),
    ("pretrain", "optimizer.lr=-1", "optimizer.lr=-1: a number of at least 0"),
    ("pretrain", "optimizer.lr=nan", "optimizer.lr=nan: a number of at least 0"),
    ("pretrain", "optimizer.momentum=5", "optimizer.momentum=5: a number of at least 0 and at most 1"),
    ("pretrain", "output_root=FILE", "output_root=FILE: a folder is needed"),
    ("pretrain", "cache_root=/dev/null", "cache_root=/dev/null: a folder is needed"),
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


def test_files_have_the_mode_of_the_umask(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
