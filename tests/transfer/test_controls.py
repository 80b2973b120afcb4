"""Controls: the same training without a teacher, once for a student and a setting."""

import pytest
import torch
from digits import compose_config, open_digits, run_rows

from recombine import models as zoo
from recombine.core.paired import compare_paired
from recombine.transfer import multi_teacher, recipe, training
from recombine.transfer.controls import control_node

CONTROLS = "controls=[xe,self_dist]"


def right(folder, row):
    """Which test images the student of a run gets right."""
    data = open_digits(folder)
    batch = next(data.loader("test", 400, train=False).epoch(0))
    data.close()
    with torch.no_grad():
        student = zoo.build(str(folder / "output" / "transfer" / row.run / "student.safetensors"))
        return (student(batch.images).argmax(1) == batch.labels).numpy()


@pytest.fixture
def trained(monkeypatch):
    """The names of trainings that are done."""
    names, original = [], training.train

    def train(*arguments, **options):
        names.append(options.get("name", "transfer"))
        return original(*arguments, **options)

    monkeypatch.setattr(training, "train", train)
    return names


def test_a_control_is_the_run_of_its_method_and_trained_once(folder, trained):
    short = "engine.epochs=1"
    (row,) = run_rows(recipe, compose_config(folder, short, CONTROLS))
    for name in ("xe", "self_dist"):
        (alone,) = run_rows(recipe, compose_config(folder, short, f"method={name}"))
        assert row.metrics[f"transfer_delta_{name}"] == alone.metrics["transfer_delta"]
        gain = compare_paired(right(folder, row), right(folder, alone))
        assert row.metrics[f"gain_over_{name}"] == pytest.approx(gain.difference)
        assert row.metrics[f"gain_over_{name}_low"] == pytest.approx(gain.low)
        assert row.metrics[f"differs_from_{name}"] == pytest.approx(gain.discordant)
    assert list(row.metrics)[:4] == ["transfer_delta", "transfer_delta_low", "transfer_delta_high", "transfer_delta_p"]
    assert trained == ["transfer", "control/xe", "control/self_dist", "transfer", "transfer"]
    (other,) = run_rows(recipe, compose_config(folder, short, CONTROLS, "method=kl", "teacher.name=letters"))
    assert trained[5:] == ["transfer"], "another teacher and method share them"
    assert other.metrics["transfer_delta_xe"] == row.metrics["transfer_delta_xe"]
    run_rows(recipe, compose_config(folder, CONTROLS, "optimizer.lr=0.01", "engine.max_steps=2"))
    assert trained[6:] == ["transfer", "control/xe", "control/self_dist"], "other settings have their own"
    run_rows(recipe, compose_config(folder, short, CONTROLS, "engine.precision=fp32"))
    assert trained[9:] == ["transfer"], "what auto means on this device, by its name"
    run_rows(recipe, compose_config(folder, short, CONTROLS, "engine.precision=bf16"))
    assert trained[10:] == ["transfer", "control/xe", "control/self_dist"], "another precision"


def test_a_method_is_not_its_own_control(folder):
    (row,) = run_rows(recipe, compose_config(folder, CONTROLS, "method=xe", "engine.max_steps=2"))
    assert "gain_over_xe" not in row.metrics and "gain_over_self_dist" in row.metrics


def test_slow_weights_are_held_against_slow_weights(folder):
    method = compose_config(folder, "method=xekl_mcl").method
    assert control_node(method, "xe") == {**method, "name": "xe", "kl_weight": 0.0}
    plain = control_node(compose_config(folder, "method=kl_dp").method, "xe")
    assert plain["_target_"].endswith(".Distillation") and plain["batchnorm"] == "keep"


def test_teachers_in_turn_are_held_against_as_many_epochs(folder, trained):
    options = ["teachers=[wide,letters]", CONTROLS, "engine.epochs=1"]
    rows = run_rows(multi_teacher, compose_config(folder, *options, config="multi_teacher/multi_teacher"))
    assert trained == ["stage1", "stage2", "control/xe", "control/self_dist"]
    (two,) = run_rows(recipe, compose_config(folder, "method=xe", "engine.epochs=2"))
    assert rows[-1].metrics["transfer_delta_xe"] == two.metrics["transfer_delta"]
    assert "gain_over_xe" not in rows[0].metrics, "a stage before the end has had fewer steps"
