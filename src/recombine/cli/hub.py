"""Exported networks for others: a model card, and the Hugging Face hub."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from recombine.cli.networks import BASE, NamedNetwork
from recombine.core.errors import ConfigError, RecombineError
from recombine.models.dense import labels_pixels
from recombine.models.detection import DETECTIONS, Detector
from recombine.models.export import Equality
from recombine.version import __version__

__all__ = ["model_card", "push"]

GIVES = {
    "image-classification": "gives logits",
    "image-segmentation": "gives logits of every pixel",
    "object-detection": (
        f"gives objects `[1, {DETECTIONS}, 6]`, best first: left, top, right, bottom, score, label (-1: nothing)"
    ),
}
"""What networks give, by the hub's names of tasks."""


def model_card(found: NamedNetwork, task: str, size: int, files: Mapping[Path, Equality]) -> str:
    """What the hub calls a model card: what the network is, its classes, its files and how they were compared."""
    model, names = found.model, found.names[task]
    what = model.name if task == BASE else f"{model.name} with the patch {task}"
    count = sum(value.numel() for value in (found.cloned if task == BASE else model).parameters())
    library = "timm" if model.architecture.startswith("timm:") else "pytorch"
    kind = "image-segmentation" if labels_pixels(model) else "image-classification"
    kind = "object-detection" if isinstance(model.net, Detector) else kind
    batch = "1" if kind == "object-detection" else "B"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {kind}"]
    lines += [f"tags: [{kind}, recombine]", "---", "", f"# {what}", ""]
    lines += [f"{len(names)} classes, {count:,} parameters, images of {size} x {size} pixels."]
    lines += [f"Architecture: `{model.architecture}`.", "", "| file | compared on | largest difference | same |"]
    lines += ["|---|---:|---:|---:|"]
    lines += [
        f"| `{file.name}` | {same.images} images | {same.difference:.1e} of the largest | {same.agreement:.2f} % |"
        for file, same in files.items()
    ]
    lines += ["", f"Every file takes uint8 images `[{batch}, 3, S, S]`, prepares them inside and {GIVES[kind]}.", ""]
    lines += ["```python", "import torch", "", *_usage(files, kind), "```", "", "## Classes", "", ", ".join(names), ""]
    lines += ["## Made by", "", f"`recombine export {shlex.join(sys.argv[1:])}` (Recombine {__version__})", ""]
    return "\n".join(lines)


def _usage(files: Mapping[Path, Equality], kind: str) -> list[str]:
    gives = "objects" if kind == "object-detection" else "logits"
    program = next((file.name for file in files if file.suffix == ".pt2"), None)
    if program:
        first = ["import torchvision  # has operators of the program", ""] if gives == "objects" else []
        return [*first, f'network = torch.export.load("{program}").module()', f"{gives} = network(images)"]
    name = next(iter(files)).name
    lines = ["import onnxruntime", "", f'session = onnxruntime.InferenceSession("{name}")']
    return [*lines, f'({gives},) = session.run(None, {{"images": images.numpy()}})']


def push(repository: str, files: Sequence[Path], card: str) -> str:
    """Upload files with a model card to a private repository of the hub; its address.

    Raises ConfigError where the name is none or nobody is logged in, RecombineError if the hub does not take them.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    if get_token() is None:
        raise ConfigError(f"--push-to-hub {repository}: no token of the hub is here; `hf auth login` stores one")
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copyfile(file, Path(folder) / file.name)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        try:
            place = api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(repo_id=place.repo_id, folder_path=folder, commit_message="Add the exported network")
        except HFValidationError as error:
            raise ConfigError(f"--push-to-hub {repository}: <owner>/<name> is needed ({error})") from error
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise RecombineError(f"--push-to-hub {repository}: {str(error).splitlines()[0]}") from error
    return str(place)
