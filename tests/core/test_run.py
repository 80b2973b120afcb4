"""Runs from the shell: exit codes, locks, signals, resuming, multiruns, rows."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from recombine import __version__
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.run import provenance
from recombine.run.device import resolve
from recombine.run.directory import locked
from recombine.run.launch import launch
from recombine.run.memory import explain_memory
from tests.core.fit import recipe


def only_run(fit):
    (folder,) = fit.folder.glob("outputs/fit/*")
    return folder


def wait_for(fit, seconds=600):
    """Until the started entry is inside its loop."""
    deadline = time.monotonic() + seconds
    while not list(fit.folder.glob("outputs/fit/*/started")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_leaves_its_row_config_and_metrics(fit):
    result = fit("noise=0", "steps=200")
    assert result.code == 0, result.err
    folder = only_run(fit)
    (row,) = read_rows(folder)
    assert row.metrics["slope"] == pytest.approx(3, abs=1e-3) and row.metrics["loss"] < 1e-5
    assert (row.entry, row.seed, row.run, row.status, row.cell) == ("fit", 0, folder.name, "ok", {"noise": 0})
    facts = row.provenance
    assert facts["command"].startswith("python main_fit.py") and facts["command"].endswith("noise=0 steps=200")
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["config"]["engine"]["precision"] == resolve("auto", where), "what was used"
    assert facts["config"]["steps"] == 200 and facts["versions"]["torch"] and facts["world_size"] == 1
    assert facts["seconds"] > 0 and facts["peak_memory_mib"] > 50 and facts["images_per_second"] == 1000
    assert len(facts["commit"]) == 40 and facts["dirty"] in (True, False) and facts["device"]
    assert OmegaConf.load(folder / "config.yaml").steps == 200
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:-1]] == list(range(200)) and lines[0]["train/rate"] == 0.1
    final = {"loss": row.metrics["loss"], "slope": row.metrics["slope"], "status": "ok"}
    final["objective"] = row.metrics["loss"]
    assert lines[-1] == {f"final/{name}": value for name, value in final.items()}


def test_the_end_of_a_run_shows_the_published_number_and_how_to_repeat_it(fit):
    out = fit("noise=0", "steps=200").out
    assert "published" in out and "difference" in out and "3.00" in out
    assert "1,000 images/s" in out and "noise=0 steps=200" in out and str(only_run(fit).name) in out
    assert "published" not in fit("noise=0.5").out


def test_a_finished_run_is_shown_and_not_repeated_unless_asked(fit):
    fit("steps=3")
    written = (only_run(fit) / "row.json").stat().st_mtime_ns
    again = fit("steps=3")
    assert again.code == 0 and "finished before" in again.out and "slope" in again.out
    assert (only_run(fit) / "row.json").stat().st_mtime_ns == written
    fit("steps=3", "engine.resume=never")
    folder = only_run(fit)
    assert (folder / "row.json").stat().st_mtime_ns > written
    assert (folder / "previous" / "last.pt").exists() and len(read_rows(fit.folder)) == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_resume_must_needs_something_to_resume(fit):
    result = fit("noise=13", "engine.resume=must")
    assert result.code == 2 and "holds no checkpoint" in result.err and "Traceback" not in result.err
    assert fit("noise=13").code == 1
    assert "thirteen" in fit("noise=13", "engine.resume=must").err


@pytest.mark.parametrize(
    ("overrides", "code", "status", "error"),
    [
        (["noise=13"], 1, "failed", "RuntimeError: thirteen"),
        (["optimizer.lr=1e6"], 4, "diverged", "the loss is"),
    ],
)
def test_a_failure_is_seen_everywhere(fit, overrides, code, status, error):
    result = fit(*overrides)
    assert result.code == code and error.split(": ")[-1] in result.err
    (row,) = read_rows(fit.folder)
    assert row.status == status and row.error.startswith(error) and row.cell["noise"] is not None
    assert error in (only_run(fit) / "traceback.txt").read_text()
    assert ("Traceback" in result.err) == (code == 1)


def test_a_config_problem_that_a_run_meets_before_it_begins_leaves_nothing(fit):
    result = fit("noise=18")
    assert result.code == 2 and "1 problem in the config; nothing was run\n  - noise=18: too much" in result.err
    assert "ended early" not in result.err and not list(fit.folder.glob("outputs/*"))


def test_of_a_multirun_it_leaves_a_failed_row(fit):
    result = fit("-m", "noise=18,0.5")
    assert result.code == 2 and "1 of 2 jobs succeeded" in result.out
    assert sorted(row.status for row in read_rows(fit.folder)) == ["failed", "ok"]


def test_a_config_problem_that_takes_a_run_to_notice_is_not_called_harmless(fit):
    result = fit("noise=14", "steps=1")
    assert result.code == 2 and "1 problem in the config\n" in result.err and "nothing was run" not in result.err
    assert "ended early" in result.err and read_rows(only_run(fit))[0].status == "failed"


@pytest.mark.parametrize("given", ["~/runs", "'~/runs'"])
def test_home_is_where_a_command_means_it(fit, monkeypatch, given):
    monkeypatch.setenv("HOME", str(fit.folder / "my home"))
    assert fit(f"output_root={given}").code == 0
    (row,) = read_rows(fit.folder / "my home" / "runs")
    assert row.status == "ok" and not (fit.folder / "~").exists()


def test_another_working_folder_is_refused(fit):
    result = fit("hydra.job.chdir=true")
    assert result.code == 2 and "hydra.job.chdir=true" in result.err and not list(fit.folder.iterdir())


def test_spent_memory_is_one_message_with_the_override_that_helps(fit):
    result = fit("noise=15", "steps=1", "eval_batch_size=100")
    assert result.code == 1 and "cpu: no memory left with batches of 100 images; eval_batch_size=50" in result.err
    assert "Traceback" not in result.err and "OutOfMemoryError" in (only_run(fit) / "traceback.txt").read_text()
    assert "eval_batch_size=50" in read_rows(fit.folder)[0].error

    def _update():  # as the engine's training step is called
        torch.empty(1 << 60)

    with pytest.raises(RuntimeError) as caught:
        _update()
    cfg = fit.compose("batch_size=64", "engine.grad_accum_steps=2")
    text = str(explain_memory(caught.value, cfg, torch.device("cpu")))
    assert "batch_size=32 engine.grad_accum_steps=4" in text
    other = ValueError("no memory")
    assert explain_memory(other, cfg, torch.device("cpu")) is other


def test_a_failing_job_does_not_stop_a_multirun(fit):
    result = fit("noise=0.1,13,-1,0.2", "-m", "steps=3")
    assert result.code == 1
    assert "2 of 4 jobs succeeded" in result.out and "job 1 failed (exit code 1): RuntimeError: thirteen" in result.out
    assert "job 2 failed (exit code 2): noise=-1: must not be negative" in result.out
    assert "python main_fit.py --config-path" in result.out and "noise=13 steps=3" in result.out
    status = {row.cell["noise"]: row.status for row in read_rows(fit.folder)}
    assert status == {0.1: "ok", 13: "failed", -1: "failed", 0.2: "ok"}
    again = fit("noise=0.1,13,0.2", "-m", "steps=3")
    assert again.out.count("finished before") == 2 and again.code == 1


def test_a_multirun_reports_its_own_jobs_where_its_folder_is_shared(fit):
    shared = f"hydra.sweep.dir={fit.folder / 'sweep'}"
    assert fit("noise=13,0.1", "-m", "steps=3", shared).code == 1
    result = fit("noise=0.2,0.3", "-m", "steps=3", shared)
    assert result.code == 0 and "2 of 2 jobs succeeded" in result.out and "thirteen" not in result.out
    table = result.out[result.out.index("status") :]
    runs = {row.cell["noise"]: row.run for row in read_rows(fit.folder)}
    for noise in (0.2, 0.3):
        (line,) = [line for line in table.splitlines() if f" {noise} " in line and "status" not in line]
        assert " ok " in line and runs[noise] in line
    assert "show their rows: recombine report --rows outputs/fit" in result.out


def test_an_experiment_file_can_ask_for_a_multirun(fit):
    result = fit("experiment=fit/seeds", "noise=0.3")
    assert result.code == 0 and "2 of 2 jobs succeeded" in result.out
    rows = read_rows(fit.folder)
    assert [row.seed for row in rows] == [0, 1] and len({row.group for row in rows}) == 1
    words = rows[1].provenance["command"].split()[2:]
    alone = fit(*words)
    assert alone.code == 0 and "finished before" in alone.out and rows[1].run in alone.out


def test_a_swept_reference_is_each_jobs_own(fit):
    """As a teacher that was trained for the student of the same seed."""
    assert fit("experiment=fit/twins", "--dry-run").out.count("to do") == 4
    assert "4 of 4 jobs succeeded" in fit("experiment=fit/twins").out
    found = {(row.seed, row.run.rpartition("-s")[0]) for row in read_rows(fit.folder)}
    assert found == {(0, "with-0"), (1, "with-1"), (0, "alone"), (1, "alone")}
    assert fit("experiment=fit/twins", "--dry-run").out.count("done") == 4 + 1  # and the line below the table


def test_launch_works_from_python_and_gives_the_objective_of_the_last_row(fit):
    cfg = fit.compose("noise=16", "steps=3")
    rows = read_rows(fit.folder) if launch(recipe, cfg) == launch(recipe, cfg) else []
    assert [row.metrics["loss"] == launch(recipe, cfg) for row in rows] == [False, True]
    with pytest.raises(ConfigError, match="must not be negative"):
        launch("tests.core.fit.recipe", fit.compose("noise=-1"))


def test_one_process_at_a_time_and_sigterm_saves(fit):
    first = fit.start("pause=0.05", "steps=2000")
    wait_for(fit)
    second = fit("pause=0.05", "steps=2000")
    assert second.code == 3 and f"in use by process {first.pid} on" in second.err and "Traceback" not in second.err
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=600)
    assert first.returncode == 143 and "repeat the command to continue" in err, err
    (row,) = read_rows(fit.folder)
    assert row.status == "interrupted"


def test_the_other_processes_of_a_finished_run_wait_for_no_lock(fit, monkeypatch):
    fit("steps=3")
    monkeypatch.setenv("RANK", "1")
    with locked(only_run(fit)):
        assert fit("steps=3").code == 0


def test_a_killed_process_leaves_no_lock_and_a_second_ctrl_c_kills(fit):
    first = fit.start("pause=60", "hold=true")
    wait_for(fit)
    first.kill()
    first.communicate()
    (only_run(fit) / "started").unlink()
    second = fit.start("pause=60", "hold=true")
    wait_for(fit)
    second.send_signal(signal.SIGINT)
    assert any("once more kills at once" in line for line in second.stderr)  # read up to it: the first one is noted
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=600)
    assert second.returncode == -signal.SIGINT


def test_ctrl_c_stops_the_jobs_that_follow(fit):
    process = fit.start("pause=0.05", "steps=2000", "seed=0,1", "-m")
    wait_for(fit)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert [row.seed for row in read_rows(fit.folder)] == [0]


def test_an_installed_copy_names_its_version(tmp_path, monkeypatch):
    assert provenance.commit()["version"] == __version__ and len(provenance.commit()["commit"]) == 40
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "provenance.py"))
    assert provenance.commit.__wrapped__() == {"version": __version__}


@pytest.mark.parametrize(
    "flags", [("--help",), ("--cfg", "job", "--resolve"), ("--info", "defaults"), ("-sc", "install=bash")]
)
def test_questions_are_answered_without_running(fit, flags):
    result = fit(*flags)
    assert result.code in (0, None) and not list(fit.folder.glob("outputs/*"))
    assert {"--help": "optimizer: adam", "--cfg": "steps: 20", "--info": "optimizer/sgd", "-sc": "complete"}[
        flags[0]
    ] in result.out


@pytest.mark.parametrize("name", ["prediction_flips/flips", "pretrain/pretrain"])
def test_the_entries_find_their_configs_from_any_folder(tmp_path, name):
    script = Path(__file__).parents[2] / f"main_{name.rpartition('/')[2]}.py"
    outputs = []
    for flags in ([], ["--config-path", "config", "--config-name", f"{name}.yaml"]):
        command = [sys.executable, str(script), *flags, "seed=7", "--cfg", "job", "--resolve"]
        outputs.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] and "seed: 7" in outputs[0] and not list(tmp_path.iterdir())
