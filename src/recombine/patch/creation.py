"""A new patch on any network, from Python: created by the name that `method=` has, and trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.builds import load_target
from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.files import config_files
from recombine.engine.optim import cosine
from recombine.models.graph import traced
from recombine.patch.method_settings import METHOD
from recombine.patch.patched import TaskNetwork
from recombine.patch.serialization import dtype_of
from recombine.patch.settings import is_paint

__all__ = ["create", "fit"]

WEIGHT_DECAY, GRAD_CLIP_NORM, WARMUP = 0.1, 1.0, 0.1
"""As in config/patch/patch.yaml."""


def create(
    network: nn.Module, method: str = "delta", *, classes: int, size: int | None = None, **options: Any
) -> TaskNetwork:
    """The network with a new patch: images in, logits of `classes` classes out (0: what the network itself gives).

    `method` and `options` are what `method=` and `method.<option>=` are on the command line. The network is frozen and
    shared; `restore()` gives it back. `size` in pixels is where its graph is traced; None: its own. Raises ConfigError
    for what there is not, and for what the network lacks.
    """
    node = {**_method_node(method), **options}
    problems = METHOD.problems(node, "method")
    if classes < 0:
        problems.append(f"classes={classes}: a number of classes is needed, or 0 for a patch without a classifier")
    if (dtype := dtype_of(network)) != "float32":
        problems.append(f"the network is {dtype}: create the patch on it in float32, and convert both then")
    if problems:
        raise ConfigError(problems)
    made = load_target("method", node["_target_"])
    device = next(network.parameters()).device
    patch = made(traced(network, size), classes, **{k: v for k, v in node.items() if not k.startswith("_")})
    return TaskNetwork(network, patch).to(device)


def _method_node(name: str) -> dict[str, Any]:
    """The node of config/patch/method/<name>.yaml, with what it is based on."""
    files = config_files("patch/method")
    if name not in files:
        raise ConfigError(f"there is no patch method {name!r}; {did_you_mean(name, files)}")
    node: dict[str, Any] = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    for parent in node.pop("defaults", ()):
        node = _method_node(parent) | node if parent != "_self_" else node
    if is_paint(node):
        raise ConfigError(f"{name} changes the network, and leaves no patch: recombine patch method={name}")
    return node


def fit(
    patched: TaskNetwork, batches: Collection[tuple[Tensor, Tensor]], *, epochs: int = 50, lr: float = 1e-3
) -> TaskNetwork:
    """Train the patch by cross entropy on (images, labels), as the entry does; a patch that was trained goes on.

    `batches` is gone through once an epoch, such as a DataLoader; images as the network takes them. AdamW with weight
    decay 0.1, a cosine with a warm-up of a tenth of all steps, gradients clipped at norm 1. Checkpoints, logs and
    cached features are what `recombine patch` has beside. Returns the network in eval mode.
    """
    trained = [parameter for parameter in patched.patch.parameters() if parameter.requires_grad]
    device = trained[0].device
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=WEIGHT_DECAY)
    schedule = cosine(optimizer, epochs * len(batches), warmup=WARMUP)
    patched.train()
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(patched(images.to(device)), labels.to(device)).backward()
            nn.utils.clip_grad_norm_(trained, GRAD_CLIP_NORM)
            optimizer.step()
            schedule.step()
    return patched.eval()
