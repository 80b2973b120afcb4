"""The parents of a run, from checkpoints or from the files of earlier crosses."""

from __future__ import annotations

from recombine.core.errors import ConfigError
from recombine.models import Model, build
from recombine.models.serialization import kind_of
from recombine.run.config import DictConfig
from recombine.run.run import Run
from recombine.stitch import offspring

__all__ = ["load_parents", "preprocessing_differences"]


def load_parents(cfg: DictConfig, run: Run) -> tuple[Model, Model]:
    """Both parents, frozen and in eval mode; one that is an offspring file is an offspring of an earlier cross.

    ConfigError if they are one network, or do not see the same pixels.
    """
    a, b = (
        (
            offspring.load(node.name)
            if kind_of(node.name) == "offspring"
            else build(node, weights_root=cfg.weights_root, seed=run.seed)
        )
        .to(run.device)
        .eval()
        .requires_grad_(False)
        for node in (cfg.a, cfg.b)
    )
    if problems := preprocessing_differences(a, b):
        raise ConfigError(problems)
    if a.digest() == b.digest():
        raise ConfigError("a and b are the same network; offspring need two, such as b=resnet32")
    return a, b


def preprocessing_differences(a: Model, b: Model) -> list[str]:
    """Why two parents do not see the same pixels: size, crop and resizing have to be equal, normalisation has not.

    Deviation: the authors give both parents one normalisation too; here each keeps that of its training, so that
    it scores as it does alone.
    """
    first, second = a.preprocess.settings(), b.preprocess.settings()
    return [
        f"the parents see different pixels: {key} is {first[key]} for {a.name} and {second[key]} for {b.name}; set "
        f"a.{key}={second[key]} or b.{key}={first[key]}"
        for key in ("size", "crop_pct", "interpolation")
        if first[key] != second[key]
    ]
