"""Table 7: patches in the frozen backbone of a segmentation network whose head trains with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.method import Supervised
from recombine.engine.metrics import for_task
from recombine.engine.pictures import save_predictions
from recombine.models import Model
from recombine.models.graph import traced
from recombine.models.segmentation import Segmenter
from recombine.patch.patched import HeadOnly, TaskNetwork
from recombine.patch.rows import cell
from recombine.patch.segmentation_file import save_segmentation
from recombine.patch.tasks import Task
from recombine.patch.training import Trainer, initial_weights
from recombine.run.console import show

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["BackboneTraining", "patch_backbone", "train_segmentation"]


class BackboneTraining(Supervised):
    """Cross entropy of pixels; all of a segmentation network trains but what its backbone was before."""

    def __init__(self, net: Model) -> None:
        super().__init__(net)
        patched = isinstance(getattr(net.net, "backbone", None), TaskNetwork)
        self.frozen = ("net.net.backbone.base",) if patched else ("net.net.backbone",)


def train_segmentation(cfg: DictConfig, trainer: Trainer, method: Any, tasks: Sequence[Task]) -> Iterator[Row]:
    """A row for each task: the head, and the patch if there is one, trained on its training images.

    Deviation: the paper trains "only the modules"; a head without weights has to train too, in the row without modules
    as in those with them.
    """
    run = trainer.engine.run
    for task in tasks:
        model = zoo.build(cfg.model, classes=task.classes, weights_root=cfg.weights_root, seed=run.seed)
        patch_backbone(model, method, task.name, run.seed)
        if run.main:
            show(zoo.describe([model]))
        trainer.fit_method(task.name, BackboneTraining(model), task.train_loader(cfg.batch_size))
        test = task.eval_loader("test")
        found = trainer.engine.evaluator(test, for_task("segmentation", task.classes))(model)
        save_predictions(model, test, task.data.class_names, run)
        net: Any = model.net
        patch = getattr(net.backbone, "patch", None)
        found["trainable_parameters"] = float(patch.parameters_without_head()) if patch is not None else 0.0
        found["head_parameters"] = float(sum(parameter.numel() for parameter in net.classifier.parameters()))
        found |= {"training_images": float(len(task.data.indices("train")))}
        if run.main:
            path = run.dir / "patches" / f"{task.name}.safetensors"
            about = {"tasks": [task.name], "datasets": [task.data.settings.source or task.data.name], "metrics": found}
            names = [str(label) for label in task.data.class_names]
            run.note_file(save_segmentation(model, path, name=task.name, class_names=names, **about))
            found["patch_bytes"] = float(path.stat().st_size)
        yield Row({**cell(cfg), "dataset": task.data.name, "task": task.name}, found | trainer.cost(task.name))


def patch_backbone(model: Model, method: Any, name: str, seed: int) -> None:
    """Put a new patch of `method(traced, classes)` into the backbone, in place; method=fc leaves it as it is."""
    net = model.net
    if not isinstance(net, Segmenter):
        raise ConfigError(f"model {model.name} is no segmentation network with a backbone, such as torchvision's")
    net.backbone.requires_grad_(False)
    with initial_weights(seed, name):
        patch = method(traced(net.backbone, model.size), 0)
    if not isinstance(patch, HeadOnly):
        net.backbone = TaskNetwork(net.backbone, patch)
