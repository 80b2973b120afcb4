"""One set of verbs for everything that a run leaves, after the custom of peft.

import recombine

network = recombine.load("student.safetensors")                  # students and offspring are networks of their own
network = recombine.attach(network, "flowers.safetensors")       # patches and clones are put on the network
network.list()                                                   # their cards, by name
network.detach("flowers")                                        # takes off one
network = network.restore()                                      # takes off everything: bit for bit what it was
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.serialization import kind_of

if TYPE_CHECKING:
    from recombine.models.model import Model

__all__ = ["attach", "load"]


def load(path: str | Path) -> Model:
    """The network of a student or offspring file, in eval mode: uint8 images [B, 3, H, W] in, logits out.

    Raises ConfigError for any other file.
    """
    kind = kind_of(path)
    if kind == "offspring":
        from recombine.stitch.offspring import load as load_offspring

        return load_offspring(path)
    if kind == "student":
        from recombine.models.factory import build

        return build(str(path))
    if kind in ("patch", "clone"):
        raise ConfigError(f"{path} is a {kind}: recombine.attach(network, path) puts it on its network")
    raise ConfigError(f"{path} is no file of ours: students, offspring, patches and clones are")


def attach(network: nn.Module, path: str | Path, name: str | None = None, **options: Any) -> nn.Module:
    """The network with the patch or the clones of a file; `name`: another one than the card's.

    The network is a `Model`, a plain timm or torchvision network, or one that has attachments already. What comes back
    has `list()`, `detach(name)` and `restore()`. Raises ConfigError if the file was made for another network.
    """
    kind = kind_of(path)
    if kind == "patch":
        from recombine import patch

        return patch.attach(network, path, name, **options)
    if kind == "clone":
        from recombine import pnc

        return pnc.attach(network, path, name, **options)
    if kind is not None:
        raise ConfigError(f"{path} is a network of its own ({kind}): recombine.load(path) opens it")
    raise ConfigError(f"{path} is no patch or clone file")
