"""The doctor says what is there and what is missing."""

import runpy
import sys
from pathlib import Path

import pytest

DOCTOR = Path(__file__).parents[2] / "scripts" / "doctor.py"


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["doctor.py", f"data_root={tmp_path}", f"weights_root={tmp_path}", *overrides])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(DOCTOR), run_name="__main__")
        captured = capsys.readouterr()
        return stop.value.code, captured.out + captured.err

    return run


def test_it_finds_datasets_and_weights(doctor, tmp_path):
    for file in ("cifar10/train.parquet", "mine/test.parquet", "w/a.safetensors", "w/b-01234567.pt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    _, out = doctor()
    assert f"dataset=cifar10: {tmp_path / 'cifar10'}" in out
    assert f"dataset=parquet dataset.folder=mine: {tmp_path / 'mine'}" in out
    assert f"weights_root={tmp_path / 'w'}: 2 checkpoints" in out
    assert "logger=wandb is offline here" in out and "torchvision's operators load" in out and "torch 2." in out


def test_it_explains_a_torchvision_of_another_torch(doctor, monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    code, out = doctor()
    assert code == 1 and "! torchvision does not fit torch: operator torchvision::nms does not exist" in out
    assert "CPU-only torch" in out and "requirements.txt" in out


def test_it_says_that_wandb_is_missing(doctor, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, out = doctor()
    assert code == 1 and "! logger=wandb: wandb is not installed; pip install wandb, or logger=none" in out


def test_it_says_why_ffcv_does_not_load(doctor, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    code, out = doctor()
    assert code == 1 and "! FFCV does not load" in out and "scripts/setup.sh" in out


def test_it_takes_no_unknown_settings(doctor):
    assert doctor("dta_root=x")[0] == 2
