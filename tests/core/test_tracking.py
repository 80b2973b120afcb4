"""Records of a run: lines that survive, and a logging service that cannot hurt."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

from recombine.core.results import read_rows
from recombine.run.tracking import Tracker, effective_mode


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensors_and_numbers_become_one_line(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(
        {"loss": torch.tensor(0.1, dtype=torch.float64), "lr": 3, "accuracy": torch.tensor([50])}, 7, prefix="a/"
    )
    tracker.finish()
    tracker.finish()
    assert lines(tmp_path) == [{"step": 7, "a/loss": 0.1, "a/lr": 3, "a/accuracy": 50.0}]


def test_lines_are_there_before_the_run_ends_and_survive_a_torn_one(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log({"loss": 1.0}, 0)
    assert lines(tmp_path) == [{"step": 0, "loss": 1.0}]
    tracker.finish()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    tracker = Tracker(tmp_path)
    tracker.log({"loss": 2.0}, 1)
    tracker.finish()
    whole = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["step"] for line in whole] == [0, 1]


def test_a_silent_tracker_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker.silent()
    tracker.log({"loss": torch.tensor(1.0)}, 0)
    tracker.summary({"a": 1})
    tracker.table("t", ["a"], [[1]])
    tracker.image("i", tmp_path / "missing.png")
    tracker.finish()
    assert not list(tmp_path.iterdir())


class Broken:
    """A wandb run on which everything fails."""

    summary = property(lambda self: self.log())

    def log(self, *_, **__):
        raise ConnectionError("no network")

    define_metric = lambda self, *_, **__: None  # noqa: E731
    finish = log


@pytest.mark.parametrize("trouble", ["init", "later"])
def test_trouble_of_wandb_changes_nothing_and_is_told_once(fit, monkeypatch, trouble):
    fit("steps=5")
    (quiet,) = read_rows(fit.folder)
    shutil.rmtree(fit.folder / "outputs")
    monkeypatch.setattr(wandb, "init", Broken().log if trouble == "init" else lambda **_: Broken())
    result = fit("steps=5", "wandb=default")
    (row,) = read_rows(fit.folder)
    assert result.code == 0 and row.metrics == quiet.metrics and row.run == quiet.run
    assert result.err.count("no network; the run goes on without it") == 1
    assert len(lines(fit.folder / "outputs" / "fit" / row.run)) == 6


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    tracker = Tracker(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_write_line", full)
        tracker.log({"loss": 1.0}, 0)
        tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert capsys.readouterr().err.count("No space left on device; the run goes on without it") == 1


def test_wandb_is_online_only_with_a_key_and_never_asks(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert (
        effective_mode("auto") == "offline"
        and effective_mode("disabled") == "disabled"
        and effective_mode("online") == "online"
    )
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert effective_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert effective_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert effective_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert effective_mode("auto") == "disabled"


@pytest.mark.slow
def test_wandb_shows_what_happened(tmp_path):
    names = {"name": "line-s0-12345678", "group": "line-abc", "job_type": "fit", "tags": ["fit"], "config": {"lr": 1}}
    folder = tmp_path / names["name"]
    folder.mkdir()
    for start, code in ((0, 130), (1, 3)):
        # The second time the same step comes again, as after a resume: wandb's own step would drop it.
        tracker = Tracker.open(folder, {"mode": "offline", "project": "recombine"}, **names)
        for step in range(start, start + 3):
            tracker.log({"loss": torch.tensor(1.0 / (step + 1))}, step, prefix="train/")
        tracker.table("rows", ["a", "b"], [[1, "x"]])
        Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
        tracker.image("picture", tmp_path / "picture.png")
        tracker.summary({"accuracy": 12.5})
        tracker.finish(code)
    first, second = sorted((folder / "wandb").glob("offline-run-*"))
    assert first.name[-15:] == second.name[-15:] and first.name[-15:].startswith("12345678-")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(second)]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (seen["name"], seen["project"], seen["exit_code"], seen["config"]) == (
        *("line-s0-12345678", "recombine", 3),
        {"lr": 1},
    )
    assert seen["summary"]["final/accuracy"] == 12.5 and seen["summary"]["step"] == 3 and seen["tags"] == ["fit"]
    assert len(list(second.glob("files/media/**/*.png"))) == 1 and list(second.glob("files/media/**/*.table.json"))
