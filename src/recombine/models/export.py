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
from torch.nn import functional as F

from recombine.core.errors import ConfigError, RecombineError
from recombine.core.files import replacing
from recombine.models.detection import Detector

__all__ = ["EXPORTS", "Equality", "OneTask", "export_network"]

TOLERANCE = 1e-3
"""Largest accepted difference: other kernels add in another order."""
FOUND = 99.0
"""Percent of a detector's objects that have to be found again: with rounding, one of two equal boxes may win."""
BATCHES = (1, 3, 16)
"""Batch sizes that are compared: the exported networks take any."""
Runner = Callable[[Tensor], Tensor]


class Equality(NamedTuple):
    """How an exported network compares with the one it was made from."""

    images: int
    difference: float
    """Largest difference of two logits, as a fraction of the largest logit; of scores and of sides of the image."""
    agreement: float
    """Percent of images with the same class; of objects that were found again."""


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

    `network`: uint8 images [B, 3, size, size] in, logits out; a detector takes one image a call. `card` (JSON) travels
    in the file. `images` to compare on; by default, and in addition, noise. Raises ConfigError for another suffix, a
    network that cannot be exported or a missing library, RecombineError (nothing is written) if the exported network
    computes something else.
    """
    path = Path(path)
    if path.suffix not in EXPORTS:
        raise ConfigError(f"{path}: a name that ends in {' or '.join(EXPORTS)} is needed")
    network = network.eval().cpu()
    boxes = _finds_objects(network)
    compared = draw_images(4 if boxes else sum(BATCHES), size)
    if images is not None:
        compared = torch.cat([compared, images])
    with replacing(path) as temporary, torch.no_grad():
        try:
            read_back = EXPORTS[path.suffix](network, temporary, compared[: 1 if boxes else 2], json.dumps(card))
        except ImportError as error:
            raise ConfigError(f"{path}: {error}; pip install 'recombine[export]'") from error
        except Exception as error:  # the exporters raise what their hundred passes raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{path}: {type(network).__name__} cannot be exported: {reason}") from error
        equality = (compare_objects if boxes else compare)(network, read_back, compared)
        check(equality, path, boxes)
    return equality


def check(equality: Equality, path: Path, boxes: bool) -> None:
    """Raise RecombineError where an exported network computes something else."""
    if not equality.difference <= TOLERANCE:
        raise RecombineError(
            f"{path} is not written: its logits differ from the network's by up to {equality.difference:.2g} of "
            f"the largest"
        )
    if equality.agreement < FOUND and boxes:
        raise RecombineError(f"{path} is not written: it finds {equality.agreement:.1f} % of the network's objects")


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


def compare_objects(network: Runner, other: Runner, images: Tensor) -> Equality:
    """The objects of two detectors, image by image: of one class, and as surely at the same place."""
    nearest: list[Tensor] = []
    side = images.shape[-1]
    for image in images.split(1):
        mine, theirs = (run(image)[0].float() for run in (network, other))
        mine, theirs = (rows[rows[:, 5] >= 0] / rows.new_tensor([side] * 4 + [1, 1]) for rows in (mine, theirs))
        apart = (mine[:, None] - theirs).abs()
        apart = apart[..., :5].amax(2).masked_fill(apart[..., 5] > 0, torch.inf)
        nearest += [F.pad(apart, (0, 1), value=torch.inf).amin(1), F.pad(apart.T, (0, 1), value=torch.inf).amin(1)]
    each = torch.cat(nearest)
    if not len(each):
        raise ConfigError("there is no object to compare in noise: --images names pictures of what the network finds")
    again = each <= TOLERANCE
    return Equality(len(images), float(each[again].max()) if again.any() else 0.0, 100 * float(again.double().mean()))


def _write_program(network: nn.Module, path: Path, example: Tensor, card: str) -> Runner:
    """A `torch.export` program: `torch.export.load(path).module()` runs it with torch alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision's own names
        program = torch.export.export(network, (example,), dynamic_shapes=_free_batch(example))
    buffer = BytesIO()  # the exporter warns of names that do not end in .pt2, as those of temporary files
    torch.export.save(program, buffer, extra_files={"card.json": card})
    path.write_bytes(buffer.getvalue())
    return torch.export.load(BytesIO(path.read_bytes())).module()


def _write_onnx(network: nn.Module, path: Path, example: Tensor, card: str) -> Runner:
    """An ONNX model in one file: input `images`, output `logits` or `objects`, the card among its properties."""
    import onnx
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of operators that are converted
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=_free_batch(example),
            input_names=["images"],
            output_names=["objects" if _finds_objects(network) else "logits"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"card": card})
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _finds_objects(network: nn.Module) -> bool:
    return any(isinstance(module, Detector) for module in network.modules())


def _free_batch(example: Tensor) -> tuple[dict[int, Any]] | None:
    """Any number of images where the example has several."""
    return ({0: torch.export.Dim("batch")},) if len(example) > 1 else None


EXPORTS: dict[str, Callable[[nn.Module, Path, Tensor, str], Runner]] = {".pt2": _write_program, ".onnx": _write_onnx}
"""Writers by suffix; each returns what runs the file it wrote."""
