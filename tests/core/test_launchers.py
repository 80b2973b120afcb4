"""Sweeps for real: launchers with a job that crashes, a search that is stopped and taken up again, dry runs."""

import os
import signal
import time
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest

from recombine.cli import slots
from recombine.cli.entries import ENTRIES
from recombine.cli.launchers import PACKAGES, launcher_error, why_absent
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR
from recombine.core.results import read_rows
from recombine.core.settings import given_settings

LAUNCHERS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}


def needs(package):
    try:
        found = find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{package} is not installed")


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_through_each_launcher_is_completed_by_repeating_it(fit, launcher, monkeypatch):
    needs(f"hydra_plugins.{LAUNCHERS[launcher]}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["-m", f"launcher={launcher}", "seed=0,1,2,3,4,5", "noise=0.5,13", "steps=3"]
    code, text = finish(fit.start(*words))
    rows = read_rows(fit.folder / "outputs")
    assert code == 1 and "multirun: 6 of 12 jobs succeeded" in text and len(rows) == 12
    assert launcher != "joblib" or all(f"[job {number}] folder   outputs" in text for number in range(0, 12, 2))
    assert sum(row.status == "failed" and "thirteen" in row.error for row in rows) == 6
    code, text = finish(fit.start(*[word.replace("13", "12") for word in words]))
    assert code == 0 and "multirun: 12 of 12 jobs succeeded" in text
    rows = read_rows(fit.folder / "outputs")
    assert sum(row.status == "ok" for row in rows) == 12
    assert len({row.provenance["sweep"] for row in rows if row.cell["noise"] == 0.5}) == 1  # were not run again
    assert all(row.provenance["command"].startswith("python main_fit.py --config-path") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_job_is_one_message_beside_those_that_ended(fit, launcher, monkeypatch):
    needs(f"hydra_plugins.{LAUNCHERS[launcher]}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    beside = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []  # with one, it starts no processes
    code, text = finish(fit.start("-m", f"launcher={launcher}", "noise=0.5,17", "steps=3", *beside))
    assert code == 1 and "a job ended without a word, as a process that is killed does: " in text
    assert "Traceback (most recent call last)" not in text.partition("a job ended without a word")[2]
    if launcher != "joblib":  # which stops all jobs at once
        assert "multirun: 1 of 1 jobs succeeded" in text
        assert [row.cell["noise"] for row in read_rows(fit.folder / "outputs") if row.status == "ok"] == [0.5]


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_saves_itself_and_is_queued_again(fit):
    needs("hydra_plugins.hydra_submitit_launcher")
    words = ["-m", "launcher=submitit_local", "hydra.launcher.timeout_min=1", "seed=0", "pause=0.5", "steps=1000"]
    code, text = finish(fit.start(*words))
    (log,) = fit.folder.glob("outputs/multirun/*/.submitit/*/*.err")
    again = log.with_suffix(".out").read_text().count("remaining timeouts)") // 2  # each line comes twice
    assert code == 140 and again == 3 and text.count("job 0 failed (exit code 140): stopped by signal 12") == 1
    (row,) = read_rows(fit.folder / "outputs")
    assert row.status == "interrupted"


@pytest.mark.parametrize(
    ("module", "text", "code", "told"),
    [
        (
            "submitit.core.utils",
            "sbatch: error: Requested node configuration is not available\n",
            2,
            "Slurm takes no such job: Requested node configuration is not available; asked for "
            "hydra.launcher.partition=null, hydra.launcher.gpus_per_node=1",
        ),
        (
            "submitit.core.utils",
            "Job 7 (task: 0) has no output (state: OUT_OF_MEMORY)\nError stream:\n...",
            1,
            "as a process that is killed does: Job 7 (task: 0) has no output (state: OUT_OF_MEMORY)",
        ),
        ("joblib.externals.loky", "", 1, "a job ended without a word, as a process that is killed does: Trouble"),
        ("ray.exceptions", "The worker died unexpectedly.", 1, "The worker died unexpectedly."),
    ],
)
def test_what_launchers_raise_is_one_message(module, text, code, told):
    error = type("Trouble", (RuntimeError,), {"__module__": module})(text)
    found = launcher_error(error, {"partition": None, "gpus_per_node": 1})
    assert found.exit_code == code and told in str(found) and "\n" not in str(found)


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("builtins", "Trouble", "sbatch: error: "),
        ("submitit.core.utils", "FailedJobError", "Job (task=0) failed during processing with trace:\nAttributeError"),
        ("ray.exceptions", "RayTaskError(ValueError)", "ray::run_job() failed"),
    ],
)
def test_errors_that_say_more_themselves_are_left_alone(module, name, text):
    assert launcher_error(type(name, (RuntimeError,), {"__module__": module})(text), {}) is None


def test_without_slurm_its_launcher_is_refused(monkeypatch):
    monkeypatch.setattr("recombine.cli.launchers.find_spec", lambda name: True)
    monkeypatch.setenv("PATH", "")
    assert "srun is not on this machine; launcher=submitit_local" in why_absent("launcher", "submitit_slurm")
    assert why_absent("launcher", "submitit_local") is None


@pytest.mark.slow
def test_each_job_has_a_gpu_to_itself(tmp_path, monkeypatch):
    """With names of GPUs alone: no CUDA is touched."""
    needs("joblib")
    import joblib

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def job(_):
        slots.take_place()
        time.sleep(0.5)
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()

    assert slots.places() == 2
    found = set(joblib.Parallel(n_jobs=slots.places())(joblib.delayed(job)(k) for k in range(6)))
    assert len(found) == len({gpu for gpu, _ in found}) and {gpu for gpu, _ in found} <= {"5", "7"}


@pytest.mark.slow
def test_a_search_stops_early_what_is_bad_and_continues_after_it_was_stopped(fit):
    needs("optuna")
    import optuna

    from recombine.run.search_trial import open_storage

    words = ["-m", "sweeper=optuna", "hydra.sweeper.n_trials=10", "optimizer.lr=tag(log,interval(0.01,0.5))", "steps=6"]
    process = fit.start(*words, "pause=0.05")
    deadline = time.monotonic() + 300
    while len(list(fit.folder.glob("outputs/fit/*/row.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    (file,) = fit.folder.glob("outputs/optuna/*.log")
    before = optuna.load_study(study_name=file.stem, storage=open_storage(file)).trials
    done = [trial for trial in before if trial.state.is_finished()]
    assert code == 130 and 3 <= len(done) < 10
    code, text = finish(fit.start(*words, "pause=0.05", "--dry-run"))
    assert code == 0 and f"10 trials: {len(done)} done, {10 - len(done)} to run; about" in text
    assert all(f"optimizer.lr={trial.params['optimizer.lr']}" in text for trial in done)
    code, text = finish(fit.start(*words, "pause=0.05"))
    study = optuna.load_study(study_name=file.stem, storage=open_storage(file))
    counted = [trial for trial in study.trials if "stopped" not in trial.user_attrs]
    assert code == 0 and len(counted) == 10 and all(trial.state.is_finished() for trial in counted)
    assert [trial.params for trial in study.trials[: len(done)]] == [trial.params for trial in done]
    assert len({trial.params["optimizer.lr"] for trial in counted}) == 10
    # what the study was told is what the rows hold; a trial that was stopped early ran fewer steps
    losses = {row.metrics["loss"] for row in read_rows(fit.folder / "outputs") if row.status == "ok"}
    pruned = [trial for trial in counted if trial.state == optuna.trial.TrialState.PRUNED]
    assert {trial.value for trial in counted if trial not in pruned} == losses
    assert pruned and all(len(trial.intermediate_values) < 6 for trial in pruned)
    assert all(trial.value == trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned)
    assert f"best: {study.best_value:.4g}" in text and "┃ objective ┃" in text


def test_wrong_settings_of_a_search_are_told_before_it_begins(fit):
    needs("optuna")
    wrong = {"n_trials": "banana", "n_jobs": "0", "sampler": "grid", "study": "../x", "nonsense": "1", "folder": "''"}
    words = [f"{'+' if name == 'nonsense' else ''}hydra.sweeper.{name}={value}" for name, value in wrong.items()]
    result = fit("-m", "sweeper=optuna", "optimizer.lr=0.1,0.2", *words)
    assert result.code == 2 and result.err.startswith("6 problems in the config; nothing was run")
    assert all(f"hydra.sweeper.{name}" in result.err for name in wrong) and not (fit.folder / "outputs").exists()


def test_a_dry_run_tells_what_is_done_and_runs_nothing(fit):
    fit("seed=1", "steps=3")
    words = ["-m", "seed=0,1,2", "steps=3", "--dry-run"]
    before = sorted(fit.folder.rglob("*"))
    result = fit(*words)
    assert result.code == 0 and sorted(fit.folder.rglob("*")) == before
    lines = [line.split() for line in result.out.splitlines()]
    assert [line[:3:2] if len(line) == 3 else [line[0], line[-1]] for line in lines[1:4]] == [
        ["0", "seed=0"],
        ["1", "seed=1"],
        ["2", "seed=2"],
    ]
    assert "done" in result.out.splitlines()[2] and "3 jobs: 1 done, 2 to run; about" in result.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("pretrain", "split=test: a search would choose by test images; set split=val dataset.val_fraction=0.1"),
        ("pretrain split=val dataset.val_fraction=0.1", ""),
        ("transfer", "split=test: a search would choose by test images"),
        ("transfer split=null", "split=null: a search has nothing to choose by"),
        ("transfer split=val", ""),
        ("transfer split=val candidates=[a,b]", "candidates are ranked without training"),
        ("multi_teacher", "split=test: a search would choose by test images"),
        ("multi_teacher split=val", ""),
        ("patch", "task.val_fraction=0: a search would have test images alone to choose by; set task.val_fraction=0.1"),
        ("patch task.val_fraction=0.1", ""),
        ("patch method=paint", ""),  # which holds images out itself
        ("patch protocol=zero_shot", "protocol=zero_shot measures test images alone"),
        ("pnc", ""),
        ("stitch", ""),
        ("flips", "flips measures networks and has no objective"),
    ],
)
def test_no_search_chooses_by_test_images(monkeypatch, words, told):
    monkeypatch.setattr("recombine.cli.overrides.why_absent", lambda group, choice: None)
    entry, *overrides = words.split()
    given = [*overrides, "seed=range(0,2)"]
    found = compose_all(str(CONFIG_DIR), ENTRIES[entry].config, [*given, "sweeper=optuna"], sweep=True)
    assert found.problems == [] and found.searches
    settings = resolve_name(ENTRIES[entry].settings).model_validate(given_settings(found.cfg))
    assert [text.startswith(told) for text in settings.check_search()] == [True] * bool(told)
    assert not compose_all(str(CONFIG_DIR), ENTRIES[entry].config, given, sweep=True).searches


def test_what_is_not_installed_is_one_message(fit, monkeypatch):
    monkeypatch.setattr("recombine.cli.launchers.find_spec", lambda name: None)
    for (group, choice), (_, extra) in PACKAGES.items():
        (problem,) = fit.problems(f"{group}={choice}", sweep=True)
        assert f"{group}={choice}: it is not installed; pip install 'recombine[{extra}]'" in problem
