"""What is measured of a clone: module, similarity, accuracies in the joint label space, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recombine import models as zoo
from recombine.engine.evaluate import Predictions, evaluating
from recombine.models import Model
from recombine.models.overview import flops
from recombine.pnc.biases import bias_curve, describe_bias
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.data import CloneData, first_outputs, sample_batch
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.gains import gain, pack
from recombine.pnc.local.similarity import fit_coefficients, similarity
from recombine.pnc.metrics import accuracy, count_bytes, hits, joint_metrics, mean_accuracy, percent, source_metrics
from recombine.run.console import show

__all__ = [
    *("evaluate_alone", "evaluate_joint", "evaluate_kept", "evaluate_module", "list_masks", "measure_bytes"),
    *("similarity_by_class", "suffix"),
]


def suffix(pairs: Sequence[CloneData], number: int) -> str:
    """What the metrics of one of several sources end in."""
    return f"_{number}" if len(pairs) > 1 else ""


def evaluate_alone(
    target: Model, sources: Sequence[Model], pairs: Sequence[CloneData], evaluator: CloneEvaluator, *, main: bool
) -> dict[str, float]:
    """Accuracies of target and sources on the test images of their own classes; shown on the `main` process."""
    accuracies = {target: accuracy(evaluator.predict_alone(target, pairs[0].target))}
    metrics = {"accuracy_target": accuracies[target]}
    for number, (source, data) in enumerate(zip(sources, pairs, strict=False), start=1):
        predictions = evaluator.predict_alone(source, data.source)
        accuracies[source] = accuracy(predictions)
        found = {"accuracy_source": accuracies[source], **source_metrics(predictions, data.outputs)}
        metrics |= {f"{key}{suffix(pairs, number)}": value for key, value in found.items()}
    if main:
        show(zoo.describe(list(accuracies), {model.name: value for model, value in accuracies.items()}))
    return metrics


def measure_bytes(target: Model, source: Model, clone: Clone) -> dict[str, float]:
    """Bytes of both whole networks, and of what a clone learned: adapter, head and one bit a filter (or weight)."""
    bits = sum(len(mask) for mask in clone.masks)
    return {
        "target_bytes": count_bytes(target.net),
        "source_bytes": count_bytes(source.net),
        "learned_bytes": count_bytes(clone.adapter, clone.head) + (bits + 7) // 8,
    }


def list_masks(net: Candidates, branch: int) -> dict[str, list]:
    """Which filters of which layers are kept, as hexadecimal numbers with a bit a filter, the first one highest.

    Masks of single weights stand in the clone file alone.
    """
    selected = net.branches[branch]
    if selected.kinds["granularity"] == "weight":
        return {}
    bits = ["".join(str(int(kept)) for kept in mask.tolist()) for mask in selected.kept_channels()]
    numbers = [f"{int(text, 2):0{(len(text) + 3) // 4}x}" for text in bits]
    return {"mask_layers": [group.name for group in selected.groups], "masks": numbers}


# ------------------------------------------------------------------------------------- the joint label space


def evaluate_joint(
    net: nn.Module,
    target: Model,
    pairs: Sequence[CloneData],
    evaluator: CloneEvaluator,
    *,
    probe: nn.Module | None = None,
) -> tuple[dict[str, float], dict[str, list]]:
    """Accuracies of a network in the joint label space of all sources on the test images, and its operations.

    Also series that say which images are answered right (`gains.pack`), so that rows can be compared image by image.
    Without images of the target's own classes also with a bias on all new logits, chosen on images kept for selection.
    With `probe`, another network of these classes, also what is gained over it. Of several sources also each by
    itself, and what is left when the first is detached, whose outputs then go.
    """
    starts, alone = first_outputs(pairs), evaluator.predict_alone(target, pairs[0].target).logits
    old, new = _predict(net, pairs, evaluator)
    metrics = joint_metrics(old, _concatenate(new), alone) | {"flops_ratio": _flops_ratio(net, target)}
    right = [hits(old).numpy(), hits(_concatenate(new)).numpy()]
    series: dict[str, list] = {"hits_original": [pack(right[0])], "hits_cloned": [pack(right[1])]}
    if not pairs[0].use_target_data:
        kept = _predict(net, pairs, evaluator, "select")
        curves = [bias_curve(mine, _concatenate(theirs), starts[0]) for mine, theirs in (kept, (old, new))]
        found, curve = describe_bias(*curves)
        metrics, series = metrics | found, series | curve
    if probe is not None:
        theirs, others = _predict(probe, pairs, evaluator)
        beside = [hits(theirs).numpy(), hits(_concatenate(others)).numpy()]
        metrics |= gain("gain_over_probe", right, beside)
        metrics["accuracy_average_probe"] = metrics["accuracy_average"] - metrics["gain_over_probe"]
    if len(pairs) > 1:
        for number, each in enumerate(new, start=1):
            metrics[f"accuracy_cloned_{number}"] = accuracy(each)
        removed = range(starts[0], starts[1])
        left = joint_metrics(_remove(old, removed), _remove(_concatenate(new[1:]), removed), alone)
        names = ("accuracy_original", "accuracy_cloned", "accuracy_average")
        metrics |= {f"{name}_without_1": left[name] for name in names}
    return metrics, series


def evaluate_kept(net: nn.Module, pairs: Sequence[CloneData], evaluator: CloneEvaluator) -> float:
    """Mean accuracy on old and on new classes, of the images kept for selection."""
    old, new = _predict(net, pairs, evaluator, "select")
    return mean_accuracy(old, _concatenate(new))


def _predict(
    net: nn.Module, pairs: Sequence[CloneData], evaluator: CloneEvaluator, split: str = "test"
) -> tuple[Predictions, list[Predictions]]:
    """Of the target's own images, and of each source's."""
    starts = first_outputs(pairs)
    new = [evaluator.predict_cloned(net, pair, split, start) for pair, start in zip(pairs, starts, strict=True)]
    return evaluator.predict_target(net, pairs[0], split), new


def _flops_ratio(net: nn.Module, target: Model) -> float:
    """Operations over the target's."""
    device = next(target.parameters()).device
    image = torch.zeros(1, 3, target.canvas, target.canvas, dtype=torch.uint8, device=device)
    with evaluating(net):
        return flops(net, image) / flops(target, image)


def _concatenate(predictions: Sequence[Predictions]) -> Predictions:
    return Predictions(*(torch.cat(values) for values in zip(*predictions, strict=True)))


def _remove(predictions: Predictions, outputs: range) -> Predictions:
    """Without the outputs of a detached clone; those behind it move up."""
    kept = [k for k in range(predictions.logits.shape[1]) if k not in outputs]
    labels = predictions.labels - len(outputs) * (predictions.labels >= outputs.start)
    return predictions._replace(logits=predictions.logits[:, kept], labels=labels)


# ------------------------------------------------------------------------------------------------ the module


class _Module(nn.Module):
    """The masked source by itself."""

    def __init__(self, net: Candidates, branch: int) -> None:
        super().__init__()
        self.net, self.branch = net, branch

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_normalized(self.net.source.preprocess(images))

    def forward_normalized(self, images: Tensor) -> Tensor:
        values, _ = self.net.forward_source(images)
        return self.net.branches[self.branch].upper(values[self.branch])[1].float()


def evaluate_module(net: Candidates, branch: int, task: CloneTask) -> dict[str, float]:
    """How well the masked source tells the cloned classes from its others: hits and false positives, always both."""
    module, data, evaluator = _Module(net, branch), task.data, task.evaluator
    if not data.whole:
        return {}
    predictions = evaluator.predict_module(module, net.source, data.source)
    outputs, answers = torch.tensor(data.outputs), predictions.logits.argmax(1)
    cloned, positive = torch.isin(predictions.labels, outputs), torch.isin(answers, outputs)
    metrics = {"module_accuracy": percent(answers[cloned] == predictions.labels[cloned])}
    if not cloned.all():
        metrics["module_false_positives"] = percent(positive[~cloned])
        metrics["module_balanced"] = (metrics["module_accuracy"] + 100 - metrics["module_false_positives"]) / 2
    masks = net.branches[branch].kept_channels()
    if masks:
        metrics["kept_filters"] = 100 * sum(int(m.sum()) for m in masks) / sum(len(m) for m in masks)
    if evaluator.similarity is None:
        return metrics
    others = [k for k in range(net.source.classes) if k not in data.outputs]
    groups = {"cloned": data.outputs, "others": others}
    similarities = {name: _similarity(module, task, classes) for name, classes in groups.items() if classes}
    return metrics | {f"similarity_{name}": value for name, value in similarities.items()}


def similarity_by_class(net: Candidates, branch: int, task: CloneTask) -> dict[str, list]:
    """How alike module and source behave around each class with test images, on the outputs of the cloned ones."""
    if task.evaluator.similarity is None or not (task.evaluator.similarity.by_class and task.data.whole):
        return {}
    module = _Module(net, branch)
    there = np.unique(task.data.source.labels("test")).tolist()
    names = task.data.source.class_names
    values = [_similarity(module, task, [k]) for k in there]
    return {"similarity_by_class": values, "source_classes": [names[k] for k in there]}


def _similarity(module: _Module, task: CloneTask, classes: Sequence[int]) -> float:
    """How alike module and source behave around test images of given classes of the source."""
    data, evaluator = task.data, task.evaluator
    assert evaluator.similarity is not None
    source, count = module.net.source, evaluator.similarity.images
    indices = data.source.indices("test")[np.isin(data.source.labels("test"), classes)]
    batch = sample_batch(data.source, "test", indices, count, source.canvas)
    near = evaluator.neighbourhood
    view = near.view(batch.images, source.preprocess, near.find_segments(batch.index, batch.images))
    options: dict[str, Any] = {"count": evaluator.similarity.vectors, "columns": data.outputs}
    thetas = [
        fit_coefficients(net, view, batch.index, near, evaluator.seed, **options)
        for net in (module.forward_normalized, source.net)
    ]
    return float(similarity(*thetas))
