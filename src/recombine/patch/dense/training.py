"""Table 7: patches in the frozen encoder of a segmentation network or detector whose heads train with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.method import Supervised
from recombine.engine.pictures import save_predictions
from recombine.engine.task_metrics import for_task
from recombine.models import Model
from recombine.models.dense import encoder_of, head_parameters, is_dense, set_encoder
from recombine.models.graph import traced
from recombine.models.serialization import tensor_bytes
from recombine.patch.dense.serialization import save_dense
from recombine.patch.patched import HeadOnly, TaskNetwork
from recombine.patch.rows import cell
from recombine.patch.tasks import Task
from recombine.patch.training import Trainer, initial_weights
from recombine.run.console import show

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["DenseTraining", "patch_encoder", "train_dense"]


class DenseTraining(Supervised):
    """Cross entropy of pixels, or the losses of a detector; all trains but what the encoder was before."""

    def __init__(self, net: Model) -> None:
        super().__init__(net)
        assert is_dense(net.net), "patch_encoder has looked at it"
        place = f"net.net.{net.net.encoder}"
        self.frozen = (f"{place}.base",) if isinstance(encoder_of(net.net), TaskNetwork) else (place,)


def train_dense(cfg: DictConfig, trainer: Trainer, method: Any, tasks: Sequence[Task]) -> Iterator[Row]:
    """A row for each task: the heads, and the patch if there is one, trained on its training images.

    Deviation: the paper trains "only the modules"; heads without weights have to train too, in the row without modules
    as in those with them.
    """
    for task in tasks:
        model = zoo.build(cfg.model, classes=task.classes, weights_root=cfg.weights_root, seed=trainer.engine.run.seed)
        patch_encoder(model, method, task.name, trainer.engine.run.seed)
        yield train_task(cfg, trainer, model, task)


def train_task(cfg: DictConfig, trainer: Trainer, model: Model, task: Task) -> Row:
    """Train a patched network for one task, measure it, keep its patch and some pictures."""
    run, net = trainer.engine.run, model.net
    assert is_dense(net), "patch_encoder has looked at it"
    if run.main:
        show(zoo.describe([model]))
    trainer.fit_method(task.name, DenseTraining(model), task.train_loader(cfg.batch_size))
    test = task.eval_loader("test")
    found = trainer.engine.evaluator(test, for_task(task.data.task, task.classes))(model)
    save_predictions(model, test, task.data.class_names, run)
    patch: Any = getattr(encoder_of(net), "patch", None)
    found["trainable_parameters"] = float(patch.parameters_without_head()) if patch is not None else 0.0
    found["head_parameters"] = float(sum(parameter.numel() for parameter in head_parameters(net)))
    found |= {"training_images": float(len(task.data.indices("train")))}
    if run.main:
        path = run.dir / "patches" / f"{task.name}.safetensors"
        about = {"tasks": [task.name], "datasets": [task.data.settings.source or task.data.name], "metrics": found}
        names = [str(label) for label in task.data.class_names]
        run.note_file(save_dense(model, path, name=task.name, class_names=names, **about))
        found["patch_bytes"] = float(tensor_bytes(path))
    return Row({**cell(cfg), "dataset": task.data.name, "task": task.name}, found | trainer.cost(task.name))


def patch_encoder(model: Model, method: Any, name: str, seed: int) -> None:
    """Put a new patch of `method(traced, classes)` into the encoder, in place; method=fc leaves it as it is."""
    net = model.net
    if not is_dense(net):
        raise ConfigError(f"model {model.name} has no backbone with heads on its maps, such as torchvision's networks")
    encoder = encoder_of(net)
    encoder.requires_grad_(False)
    with initial_weights(seed, name):
        patch = method(traced(encoder, model.size), 0)
    if not isinstance(patch, HeadOnly):
        set_encoder(net, TaskNetwork(encoder, patch))
