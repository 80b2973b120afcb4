"""Records of a run: lines that survive, and a logging service that cannot hurt."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import wandb
from PIL import Image

from recombine.core.results import read_rows
from recombine.core.types import Row
from recombine.run.tracking import Tracker, final_values
from recombine.run.wandb_logger import effective_mode


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
    finish = _log_artifact = log


@pytest.mark.parametrize("trouble", ["init", "later"])
def test_trouble_of_wandb_changes_nothing_and_is_told_once(fit, monkeypatch, trouble):
    fit("steps=5")
    (quiet,) = read_rows(fit.folder)
    shutil.rmtree(fit.folder / "outputs")
    monkeypatch.setattr(wandb, "init", Broken().log if trouble == "init" else lambda **_: Broken())
    result = fit("steps=5", "logger=wandb")
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
    assert effective_mode("auto") == "offline" and effective_mode("online") == "online"
    today = urlparse(wandb.Settings().base_url).netloc  # wandb.login() writes this host
    for host in ("api.wandb.ai", today):
        (tmp_path / "netrc").write_text(f"machine {host} login user password x\n")
        assert effective_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert effective_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert effective_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert effective_mode("auto") == "disabled"


def test_a_server_that_does_not_answer_makes_the_run_offline_within_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    tracker = Tracker.open(tmp_path, {"name": "wandb", "mode": "online", "project": "recombine"}, name="a")
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert time.monotonic() - start < 60 and list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert "127.0.0.1 does not answer" in capsys.readouterr().err


def records(folder: Path) -> dict[str, list[dict]]:
    """The records of an offline run by type, as wandb's own reader prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[dict]] = {}
    for line in map(json.loads, text.splitlines()):
        found.setdefault(line["type"], []).append(line[line["type"]])
    return found


@pytest.mark.slow
def test_a_resumed_run_stays_one_on_wandb(tmp_path):
    names = {"name": "line-s0-12345678", "group": "line-abc", "job_type": "fit", "tags": ["fit"], "config": {"lr": 1}}
    folder = tmp_path / names["name"]
    folder.mkdir()
    settings = {"name": "wandb", "mode": "offline", "project": "recombine", "alerts": True}
    for start, code in ((0, 130), (1, 4)):
        # The second time the same step comes again, as after a resume: wandb's own step would drop it.
        tracker = Tracker.open(folder, settings, **names)
        for step in range(start, start + 3):
            tracker.log({"loss": torch.tensor(1.0 / (step + 1)), "accuracy": 50 - step}, step, prefix="val/")
        tracker.alert("diverged", "the loss is not finite")
        tracker.finish(code)
    first, second = sorted((folder / "wandb").glob("offline-run-*"))
    ids = [re.search(r"-(12345678-\w{6})(?:-\d)?$", path.name)[1] for path in (first, second)]  # -1: in one second
    assert ids[0] == ids[1]
    found = records(second)
    # when it is synced, it takes the place of the first: it holds what that one does
    assert [item["item"]["step"] for item in found["history"]] == [0, 1, 2, 1, 2, 3]
    assert found["history"][0]["item"]["val/accuracy"] == 50
    summary = {key: value for item in found["summary"] for key, value in item["update"].items()}
    assert summary["val/loss"] == {"last": 0.25, "min": 0.25} and summary["val/accuracy"] == {"last": 47, "max": 50}
    assert found["exit"][0]["exit_code"] == 4 and found["alert"][0]["title"] == "diverged"


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "recombine.cli.command", *words], check=True, capture_output=True)


@pytest.mark.slow
def test_offline_files_of_wandb_hold_all_of_a_run_and_link_it_to_those_it_builds_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["loader=torch", "loader.workers=0", "device=cpu", "logger.mode=offline", "engine.epochs=1"]
    run("pretrain", "-m", "model=cnn", "dataset=digits_low", "seed=1000", *small)
    run("pretrain", "-m", "model=cnn", "dataset=digits_high", *small)
    run("pnc", "method=pnc_direct", "lime.num_fit=40", "stage_epochs=1", "logger.tags=[mine]", *small)
    written = {}
    for folder in tmp_path.glob("outputs/pretrain/*/wandb/offline-run-*"):
        found = records(folder)
        written |= {item["name"]: item["digest"] for item in found["artifact"] if item["type"] == "model"}
        sweep = next(tag for tag in found["run"][0]["tags"] if tag[:2] == "20")
        assert (tmp_path / "outputs" / "multirun" / sweep).is_dir()
    (folder,) = tmp_path.glob("outputs/pnc/*")
    found = records(next(folder.glob("wandb/offline-run-*")))
    (row,) = read_rows(folder)
    summary = {key: value for item in found["summary"] for key, value in item["update"].items()}
    assert summary["final/objective"] == row.metrics["accuracy_average"] and summary["final/status"] == "ok"
    assert all(summary[f"final/{name}"] == pytest.approx(value) for name, value in row.metrics.items())
    config = found["run"][0]["config"]["update"]
    assert {*row.provenance["config"]} <= {*config} and config["provenance"]["command"] == row.provenance["command"]
    assert {"pnc", "mine", "pnc_direct", f"git-{row.provenance['commit'][:12]}"} <= {*found["run"][0]["tags"]}
    logged = {key for line in lines(folder) for key in line if not key.startswith("final/")}
    assert logged == {key for item in found["history"] for key in item["item"] if not key.startswith(("_", "media/"))}
    media = {key: value for item in found["history"] for key, value in item["item"].items() if key[:6] == "media/"}
    pictures = len(list(folder.glob("plots/*.png")))
    drawn = [key.removesuffix("._type") for key, value in media.items() if value == "image-file"]
    assert len(drawn) == pictures > 0 and all(media[f"{key}.caption"] for key in drawn)
    used = {item["name"]: item["digest"] for item in found["artifact"] if item.get("use_after_commit")}
    assert {name: used[name] for name in written} == written and len(written) == 2
    by_type = {item["type"]: item for item in found["artifact"] if not item.get("use_after_commit")}
    assert {"clone", "run", "code"} <= by_type.keys() and sum(name.startswith("data-digits") for name in used) >= 2
    assert {"row.json", "config.yaml"} <= {entry["path"] for entry in by_type["run"]["manifest"]["contents"]}


def test_final_values_of_one_of_several_and_of_many_rows():
    one = Row({"task": "a"}, {"accuracy": 50.0})
    two = Row({"task": "b"}, {"accuracy": 70.0, "gain": 2.0})
    assert final_values([two], "gain") == {"accuracy": 70.0, "gain": 2.0, "status": "ok", "objective": 2.0}
    several = final_values([one, two], "gain")
    assert several == {"status": "ok", "objective": 2.0, "a/accuracy": 50.0, "b/accuracy": 70.0, "b/gain": 2.0}
    many = final_values([one, *[two] * 19], "gain")
    assert (many["accuracy/mean"], many["accuracy/min"], many["gain/max"]) == (69.0, 50.0, 2.0)


def test_tensorboard_has_the_same_names(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = Tracker.open(tmp_path, {"name": "tensorboard"}, config={"lr": 1})
    tracker.log({"loss": torch.tensor(0.5)}, 3, prefix="train/")
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    tracker.image("picture", tmp_path / "picture.png", "Four pixels")
    tracker.table("rows", ["a", "b"], [[1, "x"]])
    tracker.summary({"accuracy": 12.5, "status": "ok"})
    tracker.finish()
    seen = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (loss,), (final,) = seen.Scalars("train/loss"), seen.Scalars("final/accuracy")
    assert (loss.step, loss.value, final.value) == (3, 0.5, 12.5)
    assert seen.Tags()["images"] == ["media/picture"]
    texts = {name.removesuffix("/text_summary") for name in seen.Tags()["tensors"]}
    assert {"config", "media/rows", "media/picture/caption", "final/status"} <= texts
