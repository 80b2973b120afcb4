"""Zero-shot domain adaptation (Table 6): trained on a source set, measured on another set of the same classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.data.mixed import MixedLoader
from recombine.models import Model
from recombine.patch.domain.adversary import Adda
from recombine.patch.end_to_end.training import build_network, count_parameters, train_network
from recombine.patch.evaluation import accuracy
from recombine.patch.patched import TaskNetwork
from recombine.patch.rows import cell
from recombine.patch.tasks import Task
from recombine.patch.training import Trainer, initial_weights

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["adapt_zero_shot"]

ADDA_OPTIMIZER = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), weight_decay=2.5e-5)
"""That of ADDA's code, for encoder and discriminator."""


def adapt_zero_shot(
    cfg: DictConfig, trainer: Trainer, method: Any, like: Model, source: Task, targets: Sequence[Task]
) -> Iterator[Row]:
    """A row for each target: trained on the source's labels, measured on the target's test images.

    With `adaptation=adda` a second row, after the encoder has learnt from target images without labels; `target_only`
    trains on the target's labels, the bound.
    """
    for target in targets:
        if target.classes != source.classes:
            raise ConfigError(
                f"tasks: {target.name} has {target.classes} classes and {source.name}, the source, {source.classes}; "
                f"protocol=zero_shot needs the same classes in both"
            )
    for target in targets:
        name, first = target.name, target if cfg.adaptation == "target_only" else source
        network = build_network(cfg, trainer, method, like, name, first.classes)
        train_network(cfg, trainer, name, network, first)
        if cfg.adaptation != "adda":
            yield _row(cfg, trainer, network, source, target, cfg.adaptation, [name])
            continue
        yield _row(cfg, trainer, network, source, target, "none", [name])
        both = [task.train_loader(cfg.batch_size) for task in (source, target)]
        with initial_weights(trainer.engine.run.seed, f"{name} adda"):
            second = Adda(network)
        trainer.fit_method(f"{name}_adda", second, MixedLoader(both, like.preprocess.fit), ADDA_OPTIMIZER)
        yield _row(cfg, trainer, network, source, target, "adda", [name, f"{name}_adda"])


def _row(
    cfg: DictConfig,
    trainer: Trainer,
    network: TaskNetwork,
    source: Task,
    target: Task,
    adaptation: str,
    fits: Sequence[str],
) -> Row:
    """Accuracies of a network on both sets, and what the trainings `fits` cost."""
    found = accuracy(trainer.engine, network, target)
    metrics = {"accuracy_patched": found, f"accuracy_{target.name}": found}
    metrics["accuracy_source"] = accuracy(trainer.engine, network, source)
    metrics["trainable_parameters"] = count_parameters(network)
    names = {"dataset": source.data.name, "task": target.name, "adaptation": adaptation}
    return Row({**cell(cfg), **names}, metrics | trainer.cost(*fits))
