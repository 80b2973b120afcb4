"""What timm and torchvision know by name: networks, weights, numbers of classes.

timm takes seconds to import and both import torch, so each function imports the library it uses: a built-in network
never needs them.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError, did_you_mean
from recombine.models.registry import is_library

__all__ = [
    *("download_size", "expand_pattern"),
    *("library_classes", "library_name", "hub_problem", "library_names", "name_problems", "no_weights"),
    *("task_of", "torchvision_weights", "weights_problem"),
]


DENSE = {"lraspp": "segmentation", "faster_rcnn": "detection"}
"""Built-in networks that do not classify images."""


def library_name(name: str) -> str | None:
    """The name with its library's prefix: as given, else timm's, else torchvision's; None if neither knows it."""
    if is_library(name):
        return name
    import timm

    if timm.is_model(name):
        return f"timm:{name}"
    return f"torchvision:{name}" if name.partition(".")[0] in torchvision_names() else None


def torchvision_names() -> list[str]:
    """torchvision's classifiers, segmentation networks and Faster R-CNNs."""
    from torchvision import models

    dense = models.list_models(module=models.segmentation) + torchvision_detectors()
    return models.list_models(module=models) + dense


def torchvision_detectors() -> list[str]:
    """torchvision's Faster R-CNNs."""
    from torchvision import models

    return models.list_models(module=models.detection, include="fasterrcnn_*")


def task_of(architecture: str) -> str | None:
    """Whether a network gives logits of an image (classification), of every pixel (segmentation) or boxes of objects
    (detection); None: unknown."""
    library, _, name = architecture.partition(":")
    if library == "torchvision":
        from torchvision import models

        name = name.partition(".")[0]
        if name in torchvision_detectors():
            return "detection"
        return "segmentation" if name in models.list_models(module=models.segmentation) else "classification"
    if architecture in DENSE:
        return DENSE[architecture]
    return None if not library or "." in library else "classification"


def library_names() -> list[str]:
    """All names of both libraries, for suggestions."""
    import timm

    return [*timm.list_models(), *torchvision_names()]


def name_problems(architecture: str) -> list[str]:
    """What is wrong with `timm:<name>` or `torchvision:<name>`."""
    library, _, name = architecture.partition(":")
    if library == "torchvision":
        if name.partition(".")[0] not in torchvision_names():
            return [f"torchvision has no network {name!r}; {did_you_mean(name, torchvision_names())}"]
    elif library == "timm":
        import timm

        if not timm.is_model(name):
            return [f"timm has no model {name!r}; {did_you_mean(name, timm.list_models())}"]
        if "." in name and name not in timm.list_pretrained():
            tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
            return [f"timm has no weights {name!r}; it has {tags}"]
    return []


def library_classes(architecture: str) -> int | None:
    """Outputs of a library's own weights, as far as its registry states them; None for built-in networks."""
    library, _, name = architecture.partition(":")
    if library == "torchvision":
        categories = torchvision_weights(name).meta["categories"]
        return len(categories) - (categories[0] == "__background__" and task_of(architecture) == "detection")
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        return config.num_classes if config else None
    return None


def expand_pattern(pattern: str) -> list[str]:
    """The names with weights that `timm:<pattern>` or `torchvision:<pattern>` means, with * for any letters."""
    library, _, pattern = pattern.partition(":")
    if library == "torchvision":
        return [f"torchvision:{name}" for name in fnmatch.filter(torchvision_names(), pattern)]
    import timm

    return [f"timm:{name}" for name in timm.list_pretrained(pattern)]


def download_size(architecture: str) -> int:
    """Bytes of a library's own weights that are not on this machine yet: 4 for each number, counted without storage."""
    import torch

    library, _, name = architecture.partition(":")
    if library not in ("timm", "torchvision") or _on_this_machine(library, name):
        return 0
    with torch.device("meta"):
        if library == "timm":
            import timm

            net = timm.create_model(name, pretrained=False)
        else:
            from torchvision import models

            net = models.get_model(name.partition(".")[0], weights=None)
    return 4 * sum(value.numel() for value in net.state_dict().values())


def _on_this_machine(library: str, name: str) -> bool:
    if library == "torchvision":
        from torch import hub

        return (Path(hub.get_dir()) / "checkpoints" / torchvision_weights(name).url.rpartition("/")[2]).is_file()
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else None
    return repository is not None and _in_hub_cache(repository, try_to_load_from_cache)


def _in_hub_cache(repository: str, find: Callable[..., Any]) -> bool:
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return any(isinstance(find(repository, file), str) for file in names)


def weights_problem(architecture: str) -> str | None:
    """Why a library's own weights cannot be had: there are none, or they are not cached and HF_HUB_OFFLINE is set."""
    library, _, name = architecture.partition(":")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    if library == "torchvision":
        from torch import hub

        file = Path(hub.get_dir()) / "checkpoints" / torchvision_weights(name).url.rpartition("/")[2]
        return f"HF_HUB_OFFLINE is set and {file} is not there" if offline and not file.is_file() else None
    repository: str | None = name
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            return "timm has none"
        repository = config.hf_hub_id
    if not offline or not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = _in_hub_cache(repository, try_to_load_from_cache)
    return None if cached else f"HF_HUB_OFFLINE is set and {repository} is not in the Hugging Face cache"


def hub_problem(architecture: str) -> str | None:
    """Why a card alone cannot say this: a file asks no network, so what comes from the hub has to be there."""
    library, _, repository = architecture.partition(":")
    if library not in ("hf-hub", "hf_hub"):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        there = isinstance(try_to_load_from_cache(repository, "config.json"), str)
    except HFValidationError:
        there = False
    return None if there else f"its network {architecture} is not in the Hugging Face cache; fetch {repository} first"


def no_weights(architecture: str, reason: str) -> str:
    """The message for a library's weights that cannot be had, with what mends it."""
    file = architecture.rpartition(":")[2].rpartition("/")[2]
    return (
        f"no weights of {architecture}: {reason}; fetch them on a machine with a network, or put the file into "
        f"weights_root as {file}.safetensors (or .pth), or start from random ones with model.weights=null"
    )


def torchvision_weights(name: str) -> Any:
    """The weights entry of `<name>` (its newest) or `<name>.<entry>`; ConfigError for an unknown entry."""
    from torchvision import models

    name, _, entry = name.partition(".")
    entries = models.get_model_weights(name)
    if entry and entry not in entries.__members__:
        raise ConfigError(f"torchvision's {name} has no weights {entry!r}; it has {', '.join(entries.__members__)}")
    return entries[entry] if entry else entries.DEFAULT
