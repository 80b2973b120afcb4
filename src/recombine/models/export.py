"""Networks for places without this project: `torch.export` programs and ONNX files, each compared with the original."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError, RecombineError
from recombine.core.files import replacing
from recombine.models.detection import Detector

__all__ = ["EXPORTS", "Equality", "OneTask", "export_network"]

TOLERANCE = 1e-3
"""Largest accepted difference: other kernels add in another order."""
BATCHES = (1, 3, 16)
"""Batch sizes that are compared: the exported networks take any."""
Runner = Callable[[Tensor], Tensor]


class Equality(NamedTuple):
    """How an exported network compares with the one it was made from."""

    images: int
    difference: float
    """Largest difference of two logits, as a fraction of the largest logit."""
    agreement: float
    """Percent of images with the same class."""


class OneTask(nn.Module):
    """A patched network with its task chosen: images alone in, the logits of that task out."""

    def __init__(self, network: nn.Module, task: str) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> logits of the task."""
        return self.network(images, task=self.task)


def export_network(
    network: nn.Module, path: str | Path, size: int, card: Mapping[str, Any], images: Tensor | None = None
) -> Equality:
    """Write a network as `.pt2` or `.onnx`, read the file back and compare the two.

    `network`: uint8 images [B, 3, size, size] in, logits out. `card` (JSON) travels in the file. `images` to compare
    on; by default, and in addition, noise. Raises ConfigError for another suffix, a network that cannot be exported
    or a missing library, RecombineError (nothing is written) if the exported network computes something else.
    """
    path = Path(path)
    if path.suffix not in EXPORTS:
        raise ConfigError(f"{path}: a name that ends in {' or '.join(EXPORTS)} is needed")
    if any(isinstance(module, Detector) for module in network.modules()):
        raise ConfigError(f"{path}: detectors are not exported, as their work depends on the image: recombine predict")
    network = network.eval().cpu()
    compared = draw_images(sum(BATCHES), size)
    if images is not None:
        compared = torch.cat([compared, images])
    with replacing(path) as temporary, torch.no_grad():
        try:
            read_back = EXPORTS[path.suffix](network, temporary, compared[:2], json.dumps(card))
        except ImportError as error:
            raise ConfigError(f"{path}: {error}; pip install 'recombine[export]'") from error
        except Exception as error:  # the exporters raise what their hundred passes raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{path}: {type(network).__name__} cannot be exported: {reason}") from error
        equality = compare(network, read_back, compared)
        if not equality.difference <= TOLERANCE:
            raise RecombineError(
                f"{path} is not written: its logits differ from the network's by up to {equality.difference:.2g} of "
                f"the largest"
            )
    return equality


def draw_images(count: int, size: int) -> Tensor:
    """Noise, always the same: uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def compare(network: Runner, other: Runner, images: Tensor) -> Equality:
    """The logits of two networks on the same images, in batches of several sizes."""
    sizes = [*BATCHES, *[BATCHES[-1]] * len(images)]
    parts: list[Tensor] = []
    start = 0
    while start < len(images):
        parts.append(images[start : start + sizes[len(parts)]])
        start += len(parts[-1])
    mine, theirs = (torch.cat([run(part).float() for part in parts]) for run in (network, other))
    difference = float((mine - theirs).abs().max() / mine.abs().max())
    agreement = 100 * float((mine.argmax(1) == theirs.argmax(1)).double().mean())
    return Equality(len(images), difference, agreement)


def _write_program(network: nn.Module, path: Path, example: Tensor, card: str) -> Runner:
    """A `torch.export` program: `torch.export.load(path).module()` runs it with torch alone."""
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = BytesIO()  # the exporter warns of names that do not end in .pt2, as those of temporary files
    torch.export.save(program, buffer, extra_files={"card.json": card})
    path.write_bytes(buffer.getvalue())
    return torch.export.load(BytesIO(path.read_bytes())).module()


def _write_onnx(network: nn.Module, path: Path, example: Tensor, card: str) -> Runner:
    """An ONNX model in one file: input `images`, output `logits`, the card among its properties."""
    import onnx
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of operators that are converted
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"card": card})
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


EXPORTS: dict[str, Callable[[nn.Module, Path, Tensor, str], Runner]] = {".pt2": _write_program, ".onnx": _write_onnx}
"""Writers by suffix; each returns what runs the file it wrote."""
