"""Controls: what the same training does for the student without any teacher.

A gain is the teacher's only where it exceeds that of a student that was trained without one, on the same images, in the
same order, with the same optimizer and number of steps. Controls do not depend on the teacher: each is trained once
for a student and a setting, and its predictions are shared by all runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from recombine.core.settings import to_dict
from recombine.data import Data
from recombine.engine.class_predictions import ClassPredictions, compute_once, predict_classes
from recombine.models import Model
from recombine.run.device import resolve
from recombine.run.run import Run
from recombine.transfer import training

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["control_node", "run_controls"]

DISTILLATION = "recombine.transfer.distillation"
RESULT = ("epochs", "max_steps", "grad_accum_steps", "grad_clip_norm", "ema_decay", "max_eval_batches")
"""Settings of the engine on which the result of a training depends."""

log = logging.getLogger(__name__)


def control_node(method: Any, name: str) -> dict[str, Any]:
    """The method node of a control that matches `method`: xe learns from labels, self_dist from the initial student.

    Where the method publishes slow weights, xe does too.
    """
    node = to_dict(method)
    shared = {"name": name, "batchnorm": node.get("batchnorm", "adapt")}
    if name == "self_dist":
        return {"_target_": f"{DISTILLATION}.SelfDistillation", **shared}
    if node["_target_"] == f"{DISTILLATION}.MomentumDistillation":
        return {**node, "name": name, "kl_weight": 0.0}
    return {"_target_": f"{DISTILLATION}.Distillation", "kl_weight": 0.0, **shared}


def run_controls(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Sequence[Model], *, epochs: int = 1
) -> dict[str, ClassPredictions]:
    """Predictions for `split` of the student trained as each control, by name; `student` stays as it is.

    The teachers only say how large the training images are. `epochs` multiplies those of the engine. A control that is
    the method itself, or that reads labels which images lack, is left out.
    """
    if not training.has_split(cfg, data, cfg.split):
        return {}
    unlabelled = training.count_unlabelled(data)
    if unlabelled and "xe" in cfg.controls:
        log.info("the control xe reads labels, which %d training images lack: it is left out", unlabelled)
    names = [name for name in cfg.controls if name != cfg.method.name and not (name == "xe" and unlabelled)]
    return {name: _run_control(cfg, run, data, student, teachers, name, epochs) for name in names}


def _run_control(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Sequence[Model], name: str, epochs: int
) -> ClassPredictions:
    node = control_node(cfg.method, name)
    images = training.eval_loader(cfg, data, cfg.split, student.canvas)
    seen = training.open_training_loader(cfg, data, [student, *teachers], labelled=name == "xe")
    identity = {
        "student": student.digest(),
        "method": node,
        "images": [seen.digest, to_dict(cfg.dataset.augment), images.digest],
        "optimizer": [to_dict(cfg.optimizer), training.learning_rate(cfg), to_dict(cfg.schedule), cfg.batch_size],
        "precision": resolve(cfg.engine.precision, run.device),
        "engine": [{key: cfg.engine.get(key) for key in RESULT}, epochs, cfg.seed, str(run.device.type)],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def compute() -> ClassPredictions:
        trained = deepcopy(student)
        training.train(cfg, run, data, trained, teachers, {}, node=node, name=f"control/{name}", epochs=epochs)
        return predict_classes(trained, images, precision=cfg.engine.eval_precision)

    return compute_once(
        run.cache / "controls" / f"{digest}.safetensors", compute, stopped=partial(training.raise_if_stopped, run)
    )
