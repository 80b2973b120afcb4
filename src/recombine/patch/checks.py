"""What a patch needs of its network, looked at before a run begins: on one with random weights, which costs little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.models.graph import traced
from recombine.patch.dense.training import patch_encoder
from recombine.patch.settings import DENSE, is_paint
from recombine.run.config import build

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["structure_problems"]

CLASSES = 2
"""Of the network that is looked at: any number."""


def structure_problems(cfg: DictConfig) -> list[str]:
    """What is wrong with the method for this network: no blocks, fewer than asked for, none of these names."""
    if is_paint(cfg.method):
        return []
    try:
        model = zoo.build({**cfg.model, "weights": None}, classes=CLASSES, weights_root=cfg.weights_root)
        if cfg.protocol in DENSE:
            patch_encoder(model, build(cfg.method), "", cfg.seed)
        else:
            with torch.device("meta"):
                build(cfg.method)(traced(model), CLASSES)
    except ConfigError as error:
        return error.problems
    except Exception:
        return []  # of somebody's own class: the run says it, with its traceback
    return []
