"""Problems of a config, the identity of a run, and construction."""

import pytest
import torch
from omegaconf import OmegaConf

from recombine.core.errors import did_you_mean
from recombine.run.config import build, run_id, validate
from tests.core.fit.settings import FitSettings

BROKEN = {
    "stepz=3": "unknown setting stepz: did you mean 'steps'?",
    "lr=0.3": "unknown setting lr: did you mean optimizer.lr?",
    "optimizer.lrr=0.3": "unknown setting optimizer.lrr (of optimizer=sgd): did you mean 'lr'?",
    "optimizer.maximize=true": "+optimizer.maximize=true adds it",
    "+optimizer.nestrov=true": "unknown setting optimizer.nestrov: did you mean 'nesterov'?",
    "optimizer=sdg": "there is no optimizer 'sdg'; did you mean 'sgd'?",
    "optimiser=sgd": "unknown setting optimiser: did you mean 'optimizer'?",
    "optimizer@second=sgd": "this entry has no optimizer@second",
    "optimzer@second=sgd": "there is no group 'optimzer'; did you mean 'optimizer'?",
    "steps=many": "steps=many: a number is needed, such as steps=20",
    "seed=1.5": "seed=1.5: a whole number of at least 0 is needed",
    "shuffle=3": "shuffle=3: true or false is needed, such as shuffle=false",
    "widths=3": "widths=3: a list of whole numbers is needed, such as widths=[1,2]",
    "noise.sigma=1": "noise is a single value and has no settings",
    "noise=-1": "noise=-1: must not be negative; noise=0",
    "batch_size=0": "batch_size=0: a whole number of at least 1 is needed",
    "device=gpu": "device=gpu: one of auto, cpu, cuda",
    "engine.epocs=3": "unknown setting engine.epocs (of engine=default): did you mean 'epochs'?",
    "engine.epochs=soon": "engine.epochs=soon: a number of at least 0",
    "engine.precision=half": "engine.precision=half: one of auto, fp32",
    "engine.resume=maybe": "engine.resume=maybe: one of auto, never, must",
    "+logger.mode=loud": "logger.mode=loud: one of auto, online, offline",
    "logger=of": "there is no logger 'of'",
    "wandb=disabled": "give logger=none since version 0.2",
    "wandb.project=mine": "unknown setting wandb.project: it is called logger.project since version 0.2",
    "name=???": "name: a value is needed; give name=...",
    "name='${nothing}'": "name: cannot be resolved",
    "optimizer._target_=os.remove": "os.remove is not an optimizer; optimizer=sgd is one",
    "optimizer._target_=torch.optim.SDG": "torch.optim has no SDG; did you mean 'SGD'?",
    "optimizer._target_=torch.optim.sdg.SGD": "No module named 'torch.optim.sdg'",
    "seed=0,1": "several values; add -m to run one job for each, or write 'seed=[0,1]' for a list",
    "widths=[1": "widths=[1: not of the form key=value",
    "noise": "noise: not of the form key=value",
    "+surprise=1": "unknown setting surprise",
    "experiment=fit/sedes": "there is no experiment 'fit/sedes'; did you mean 'fit/seeds'?",
    "experiment=flips/cifar10": "experiment=flips/cifar10: this is an experiment of flips; give it to recombine flips",
    "optimizer={nope: 1}": "unknown setting optimizer.nope (of optimizer=sgd): known are: ",
    "nope={a: 1}": "unknown setting nope: ",
    "hydra.job.env_set={A: 5}": "unknown setting hydra.job.env_set.A",
    "~seed": "~seed: this entry needs it; change it by seed=...",
    "=5": "=5: not of the form key=value (nothing is named)",
    "output_root=/ü": """quote it twice: 'output_root="/ü"'""",
    "seed=99999999999999999999": "seed=99999999999999999999: a whole number below 2**63 is needed",
    "seed=1e2": "seed=100.0: a whole number of at least 0",
    "experiment=fit/slip": "unknown setting stepps: did you mean 'steps'?",
}


@pytest.mark.parametrize("override", BROKEN)
def test_each_problem_is_named_with_what_mends_it(fit, override):
    problems = fit.problems(override)
    assert len(problems) == 1 and BROKEN[override] in problems[0]


def test_a_sweep_of_no_values_is_told_and_a_pattern_is_one_of_names(fit):
    for text in ("seed=range(0)", "seed=glob(*)", "optimizer=glob(z*)"):
        assert fit.problems(text, sweep=True) == [f"{text}: no values at all, so that there is no job"]
    result = fit("-m", "optimizer=glob(adam*)", "--dry-run")
    assert result.code == 0 and "2 jobs: 0 done, 2 to run" in result.out, result.err
    assert fit.problems("optimizer={lr: 0.5}", "output_root='/ü ö'") == []


def test_a_good_config_has_no_problems(fit):
    assert fit.problems("steps=3", "optimizer=adam", "seed=0,1", "engine=debug", "optimizer.lr=1", sweep=True) == []


@pytest.mark.parametrize("override", ["optimizer=sdg", "noise=-1"])
def test_the_command_says_it_without_a_traceback(fit, override):
    result = fit(override)
    assert result.code == 2 and result.err.startswith("1 problem in the config; nothing was run")
    assert BROKEN[override] in result.err and "Traceback" not in result.err
    assert not list(fit.folder.glob("outputs/*"))


def test_problems_of_every_kind_are_reported_together(fit):
    broken = ["stepz=3", "optimizer=sdg", "shuffle=3", "noise=-1", "engine.precision=half", "widths=[1", "seed=0,1"]
    result = fit(*broken)
    assert result.code == 2 and result.err.startswith("7 problems")
    assert all(BROKEN[override] in result.err for override in broken)


def test_a_multirun_checks_every_choice_before_its_first_job(fit):
    result = fit("optimizer=adam,sdg,sgd", "-m", "seed=0,x", "optimizer.momentum=0.5")
    assert result.code == 2 and result.err.startswith("3 problems")
    assert "no optimizer 'sdg'" in result.err and "seed=x: " in result.err
    assert "unknown setting optimizer.momentum (of optimizer=adam)" in result.err
    assert not list(fit.folder.glob("outputs/fit/*"))


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--info", "config"), ("--help",)])
def test_questions_about_a_broken_config_are_answered_alike(fit, flags):
    result = fit("stepz=3", *flags)
    assert result.code == 2 and BROKEN["stepz=3"] in result.err and "Traceback" not in result.err


HYDRA = {
    "+hydra.launcher.x=1": "BasicLauncher.__init__() got an unexpected keyword argument 'x'",
    "hydra.launcher.x=1": "unknown setting hydra.launcher.x: there are none",
    "+hydra.sweeper.x=1": "BasicSweeper.__init__() got an unexpected keyword argument 'x'",
    "hydra.sweeper.x=1": "unknown setting hydra.sweeper.x: known are: max_batch_size, params",
    "hydra.launcher=null": "Hydra launcher is not configured",
    "hydra.sweeper=null": "Hydra sweeper is not configured",
    "hydra.sweeper._target_=nothing.x": "Invalid plugin 'nothing.x'",
    "hydra.sweeper.max_batch_size=0": "assert max_batch_size is None or max_batch_size > 0",
    "hydra.sweep.dir=FILE/x": "cannot write FILE/x: Not a directory; give another folder by output_root=,",
    "launcher=joblib hydra.launcher.n_jobs=0": "n_jobs == 0 in Parallel has no meaning",
}


@pytest.mark.parametrize("words", HYDRA)
def test_what_hydra_does_not_take_is_one_message(fit, words):
    if "joblib" in words:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (fit.folder / "FILE").touch()
    result = fit("-m", "seed=0,1", "steps=1", *words.split())
    assert result.code == 2 and result.err.startswith("1 problem in the config; nothing was run"), result.err
    assert HYDRA[words] in result.err and "Traceback" not in result.err
    assert not (fit.folder / "outputs" / "fit").exists()


def test_a_folder_that_hydra_cannot_make_is_one_message(fit):
    (fit.folder / "FILE").touch()
    for words in (["hydra.run.dir=FILE/x"], ["hydra.output_subdir=../FILE/x"]):
        result = fit("steps=1", *words)
        assert result.code == 2 and "FILE/x: Not a directory; give another" in result.err, result.err
    result = fit("steps=1", "--config-dir", "nowhere")
    assert result.code == 2 and result.err.endswith("- --config-dir nowhere: there is no such folder\n")


def test_settings_of_what_is_not_installed_are_not_told_too(fit, monkeypatch):
    monkeypatch.setattr("recombine.cli.launchers.find_spec", lambda name: None)
    found = fit.problems("launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=0,1", sweep=True)
    assert len(found) == 1 and "it is not installed" in found[0]


def test_help_lists_the_groups_of_this_entry_within_the_terminal(fit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    result = fit("--help")
    assert result.code == 0 and "\noptimizer: adam, adamw, sgd\n" in result.out and "steps: 20" in result.out
    assert "experiment: fit/seeds" in result.out and not any(name in result.out for name in ("flips", "_defaults"))
    listed = result.out.partition("optimizer:")[2].partition("Settings")[0]
    assert max(map(len, listed.splitlines())) <= 60


def test_the_run_is_a_function_of_what_matters(fit):
    base = run_id(fit.compose(), "fit")
    same = ["data_root=/x", "logger=wandb", "device=cpu", "engine.resume=must", "engine.log_every=1", "steps=20.0"]
    assert run_id(fit.compose(*same), "fit") == base
    for other in ("optimizer.lr=0.2", "engine.epochs=7", "experiment=fit/seeds", "optimizer=adam", "widths=[2,1]"):
        assert run_id(fit.compose(other), "fit").digest != base.digest
    seeded = run_id(fit.compose("seed=1"), "fit")
    assert seeded.group == base.group and seeded.digest != base.digest
    assert base.run == f"line-s0-{base.digest}"
    assert run_id(fit.compose("name=a b/C"), "fit").run == f"a-b-c-s0-{base.digest}"


def test_a_setting_of_a_later_version_renames_no_run(fit):
    new = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(fit.compose())), {"method": {"batchnorm": "adapt"}})
    old, kept = new.copy(), OmegaConf.merge(new, {"method": {"batchnorm": "keep"}})
    del old.method.batchnorm
    assert run_id(new, "pretrain") == run_id(old, "pretrain") != run_id(kept, "pretrain")
    assert run_id(new, "transfer") != run_id(old, "transfer")  # which has had it from the start


def test_the_run_is_the_same_resolved_or_not_and_does_not_hear_of_places(fit):
    cfg = fit.compose()
    OmegaConf.set_struct(cfg, False)
    cfg.folder = "${data_root}/${noise}"
    moved = OmegaConf.merge(cfg, {"data_root": "/elsewhere"})
    assert run_id(cfg, "fit") == run_id(moved, "fit")
    assert run_id(cfg, "fit") != run_id(OmegaConf.merge(cfg, {"noise": 0.2}), "fit")


def test_somebodys_own_images_are_known_by_their_place(fit, monkeypatch, tmp_path):
    def run(*overrides):
        return run_id(OmegaConf.create({**fit.compose(*overrides), "dataset": {"source": "folder"}}), "fit")

    assert run("data_root=/a") != run("data_root=/b")
    monkeypatch.chdir(tmp_path)
    assert run("data_root=images") == run(f"data_root={tmp_path}/images")


def test_single_run_job_of_a_multirun_and_compose_name_the_same_run(fit):
    expected = {run_id(fit.compose("steps=3", f"seed={seed}"), "fit").run for seed in (0, 1)}
    fit("steps=3")
    assert {path.name for path in fit.folder.glob("outputs/fit/*")} <= expected
    result = fit("steps=3", "seed=0,1", "-m")
    assert {path.name for path in fit.folder.glob("outputs/fit/*")} == expected
    assert result.out.count("finished before") == 1


def test_build_hands_late_arguments_over_untouched():
    node = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = build(node)(weights)
    assert optimizer.param_groups[0]["params"][0] is weights[0] and optimizer.defaults["lr"] == 0.5
    layer = build({"_target_": "torch.nn.Linear", "in_features": 2}, out_features=3)
    assert layer.weight.shape == (3, 2)
    weight = torch.ones(3)
    assert build({"_target_": "torch.nn.CrossEntropyLoss"}, weight=weight).weight is weight


def test_validate_accepts_what_ships(fit):
    assert validate(fit.compose(), FitSettings) == []


def test_suggestions():
    assert did_you_mean("resnt20", ["resnet20", "vgg"]) == "did you mean 'resnet20'?"
    assert did_you_mean("resnt20", ["resnet20", "resnet20"]) == "did you mean 'resnet20'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known are: a, b"
    assert did_you_mean("zzz", map(str, range(30)), show=2) == "known are: 0, 1, ... (30 in all)"


def test_join_names_models_however_they_are_given():
    cfg = OmegaConf.create({"models": ["a", "w/b.safetensors", {"name": "c"}, "d", "e"], "name": "${join:${models}}"})
    assert cfg.name == "a-b-c-and-2-more"
