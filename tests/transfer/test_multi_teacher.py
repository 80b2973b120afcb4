"""main_multi_teacher.py: stages, parallel teachers and soups on handwritten digits, and a kill in the middle."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import compose_config, run_rows
from safetensors.torch import load_file

from recombine import models as zoo
from recombine.core.errors import ConfigError, Interrupted, exit_code_of
from recombine.run.config import run_id
from recombine.run.launch import launch
from recombine.transfer import multi_teacher as recipe
from recombine.transfer import training

CONFIG = "multi_teacher/multi_teacher"
TEACHERS = "teachers=[wide,letters]"


def configure(folder, *overrides):
    return compose_config(folder, TEACHERS, "engine.epochs=1", *overrides, config=CONFIG)


def place(cfg):
    return cfg.output_root + "/multi_teacher/" + run_id(cfg, "multi_teacher").run


@pytest.fixture(scope="module")
def sequential(folder):
    """Config and rows of two stages."""
    cfg = configure(folder)
    return cfg, run_rows(recipe, cfg)


def test_stages_go_from_the_weaker_teacher_to_the_stronger(folder, sequential):
    _, rows = sequential
    assert [row.cell["stage"] for row in rows] == ["1", "final"]
    assert rows[0].metrics["accuracy_teacher"] <= rows[1].metrics["accuracy_teacher"]
    assert rows[0].metrics["transfer_delta"] == rows[0].metrics["transfer_delta_step"]
    first, last = (row.metrics["accuracy_after"] for row in rows)
    assert rows[1].metrics["transfer_delta_step"] == pytest.approx(last - first)
    assert rows[1].metrics["transfer_delta"] == pytest.approx(last - rows[0].metrics["accuracy_before"])
    descending = run_rows(recipe, configure(folder, "order=descending"))
    assert descending[0].metrics["accuracy_teacher"] == rows[1].metrics["accuracy_teacher"]


def test_rows_of_stages_tell_what_single_rows_tell(sequential):
    _, rows = sequential
    for row in rows:
        assert row.metrics["val_accuracy_best"] >= row.metrics["val_accuracy_after"] and row.metrics["parameters"] > 0
        assert 0 < row.metrics["to_teacher"] < 100


def test_only_what_other_runs_can_use_is_stored(folder, tmp_path):
    """Logits of the student that a stage starts from are of no use elsewhere; networks of the config are."""
    run_rows(recipe, configure(folder, f"cache_root={tmp_path}", "engine.max_steps=2"))
    files = [path.name for path in (tmp_path / "predictions").glob("*.safetensors")]
    assert len([name for name in files if ".classes." in name]) == 3 + 3, "three networks on val and test"
    assert len(files) == 6 + 3, "and logits for training images; nothing of a stage's student"


def test_a_stage_keeps_what_the_student_knew_at_its_start(folder, monkeypatch):
    initial = []
    original = training.make_method

    def make_method(*arguments):
        method = original(*arguments)
        (kept,) = method.initial.models
        initial.append({key: value.clone() for key, value in kept.net.state_dict().items()})
        return method

    monkeypatch.setattr(training, "make_method", make_method)
    cfg = configure(folder, "seed=4")
    run_rows(recipe, cfg)
    start = zoo.build("narrow", weights_root=folder / "weights").net.state_dict()
    staged = load_file(f"{place(cfg)}/student_stage1.safetensors")
    for key, value in start.items():
        assert torch.equal(initial[0][key], value) and torch.equal(initial[1][key], staged[key]), key
    assert any(not torch.equal(staged[key], value) for key, value in start.items())


@pytest.mark.parametrize(
    "options", [[], ["combine=soup"], ["method=xekl_mcl", "method.decay=0.9"]], ids=["sequential", "soup", "mcl"]
)
def test_killed_in_the_second_stage_it_ends_bit_for_bit_the_same(folder, tmp_path, monkeypatch, options):
    cfg = configure(folder, *options)
    rows = run_rows(recipe, cfg)
    interrupted = configure(folder, *options, f"output_root={tmp_path}")
    original, steps = training.make_method, []

    def make_method(*arguments):
        method = original(*arguments)

        own = method.after_update

        def after_update(step):
            own(step)
            steps.append(step)
            if len(steps) == 21 + 9:  # an epoch of 1,347 images has 21 steps of 64
                os.kill(os.getpid(), signal.SIGTERM)

        method.after_update = after_update
        return method

    monkeypatch.setattr(training, "make_method", make_method)
    with pytest.raises(Interrupted):
        launch(recipe, interrupted)
    monkeypatch.setattr(training, "make_method", original)
    resumed = run_rows(recipe, interrupted)
    ours, theirs = (load_file(f"{place(c)}/student.safetensors") for c in (cfg, interrupted))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [row.metrics for row in resumed] == [row.metrics for row in rows]
    assert [row.series for row in resumed] == [row.series for row in rows]


def test_parallel_teachers(folder):
    (row,) = run_rows(recipe, configure(folder, "combine=parallel"))
    assert row.cell["combine"] == "parallel" and row.cell["teachers"] == "wide+letters"
    assert 0 < row.metrics["to_teacher"] < 100


def test_soup_is_the_mean_of_the_single_students(folder):
    cfg = configure(folder, "combine=soup")
    rows = {
        row.cell["combine"] if row.cell["stage"] == "final" else row.cell["stage"]: row for row in run_rows(recipe, cfg)
    }
    singles = [rows[name].metrics["transfer_delta"] for name in ("wide", "letters")]
    for name, function in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        assert rows[f"single {name}"].metrics["transfer_delta"] == pytest.approx(function(singles))
    members = [load_file(f"{place(cfg)}/student_{name}.safetensors") for name in ("wide", "letters")]
    mixed = load_file(f"{place(cfg)}/student.safetensors")
    for key, value in mixed.items():
        assert value.dtype == members[0][key].dtype
        if value.is_floating_point():
            torch.testing.assert_close(value, (members[0][key] + members[1][key]) / 2)
    card = json.loads(Path(f"{place(cfg)}/student.json").read_text())
    assert card["metrics"]["accuracy_after"] == rows["soup"].metrics["accuracy_after"]


def test_soup_of_copies_is_the_copy():
    state = zoo.build({"name": "cnn"}, classes=10).net.state_dict()
    state = {k: v + 3 if k.endswith("num_batches_tracked") else v for k, v in state.items()}
    mixed = recipe.average_weights([state, state, state])
    assert all(torch.equal(mixed[key], value) and mixed[key].dtype == value.dtype for key, value in state.items())


def test_other_methods_take_one_teacher_at_a_time(folder):
    rows = run_rows(recipe, configure(folder, "method=kl", "engine.max_steps=2"))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=kl", "combine=parallel"], "method=kl takes one teacher at a time, not 2"),
        (["method=bi_kd", "combine=parallel"], "method=bi_kd learns from no frozen teachers"),
        (["method=self_dist"], "method=self_dist learns from no frozen teachers"),
        (["method=ensemble", "combine=soup"], "method=ensemble learns from no frozen teachers"),
        (["method=xe", "combine=soup"], "method=xe learns from no frozen teachers.*such as method=kl_dp"),
    ],
)
def test_methods_that_cannot_combine_teachers_are_refused_before_anything_is_loaded(folder, overrides, message):
    cfg = configure(folder, *overrides)
    with pytest.raises(ConfigError, match=message) as caught:
        launch(recipe, cfg)
    assert exit_code_of(caught.value) == 2 and not Path(place(cfg)).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teachers=[wide]", "teachers: at least two are needed, such as teachers="),
        ("teachers=null", "teachers=null: a list of names or settings is needed"),
        ("teachers=wide", r"teachers=wide: a list of names .* such as teachers=\[resnet32,resnet56\]"),
        ("teachers=[3,4]", r"teachers=\[3,4\]: a list of names"),
        ("cache_teacher_logits=maybe", "cache_teacher_logits=maybe: true or false"),
        ("teachers=[wide,wide]", "wide is named twice"),
        ("teachers=[wide,narrow]", "same network"),
        ("teachers=[wide,nobody_knows_this]", "nobody_knows_this: unknown model"),
        ("combine=both", "combine=both: one of sequential, parallel, soup"),
        ("order=up", "order=up: one of ascending, descending, given"),
    ],
)
def test_bad_input_is_one_clear_message(folder, override, message):
    with pytest.raises(ConfigError, match=message):
        launch(recipe, configure(folder, override))


def test_a_part_of_the_test_images_that_cannot_be_had_is_told_before_a_training(folder, tmp_path):
    cfg = configure(folder, "dataset.test_fraction=0.0001", f"output_root={tmp_path}")
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=0.0001 of \d+ samples") as refused:
        launch(recipe, cfg)
    assert not refused.value.started and not list(tmp_path.iterdir())
