"""Which position is taken: every candidate is scored on images kept for selection, then one is selected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from recombine.core.types import Batch
from recombine.engine.evaluate import evaluating
from recombine.models import Model
from recombine.pnc.clone.branch import FullHead
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.data import sample_batch
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.gains import gain
from recombine.pnc.local.similarity import fit_coefficients, similarity
from recombine.pnc.metrics import percent

__all__ = ["joint_similarities", "predict_hits", "score_positions", "score_similarity", "select_position"]


def select_position(values: Sequence[float]) -> int:
    """Which of the candidates' `values`, from input to output, is taken; of equal ones the last, the smallest clone."""
    return max(range(len(values)), key=lambda place: (values[place], place))


class _Flat(nn.Module):
    """Logits [B, P, C] of all candidates as [B, P C], one pass for all."""

    def __init__(self, net: Candidates) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).flatten(1)


def score_positions(task: CloneTask, net: Candidates) -> tuple[dict[str, list], dict[str, float]]:
    """Every candidate on the images kept for selection, a list for each score; and the mean accuracy of the probe.

    Scores are position, accuracies, what these gain over the probe's with its interval, and parameters.
    """
    found = [hits.unbind(1) for hits, _ in predict_hits(task, net, "select")]
    curve: dict[str, list] = {"position": [branch.position.number for branch in net.positions]}
    curve["source_position"] = [branch.position.source_number for branch in net.positions]
    *candidates, probe = zip(*found, strict=True)
    for name, group in (("original", 0), ("cloned", 1)):
        curve[name] = [percent(each[group]) for each in candidates]
    curve["average"] = [(a + b) / 2 for a, b in zip(curve["original"], curve["cloned"], strict=True)]
    gains = [gain("gain_over_probe", _arrays(each), _arrays(probe)) for each in candidates]
    curve |= {name: [each[name] for each in gains] for name in gains[0]}
    for branch in net.positions:
        for name, parameters in Clone(branch, task.data.class_names).count_parameters().items():
            curve.setdefault(name, []).append(parameters)
    return curve, {"select_average_probe": sum(map(percent, probe)) / len(probe)}


def _arrays(hits: Iterable[Tensor]) -> list[np.ndarray]:
    return [each.numpy() for each in hits]


def predict_hits(task: CloneTask, net: Candidates, split: str) -> list[tuple[Tensor, Tensor]]:
    """Which images of old and of new classes each branch answers right, bool [N, P], and their labels [N]."""
    flat, count = task.evaluator.predict_joint(_Flat(net), task.data, split), len(net.branches)
    answers = [each.logits.unflatten(1, (count, -1)).argmax(2) for each in flat]
    return [(answer == each.labels[:, None], each.labels) for answer, each in zip(answers, flat, strict=True)]


def score_similarity(task: CloneTask, net: Candidates) -> list[float]:
    """Eq. (8) of every candidate, on images kept for selection."""
    assert task.evaluator.similarity is not None
    count, canvas, data = task.evaluator.similarity.images, task.evaluator.canvas, task.data
    new, old = (
        sample_batch(each, "train", data.split(each, "select"), count, canvas) for each in (data.cloned, data.target)
    )
    return joint_similarities(net, data.outputs, new, old, task.evaluator)[:-1]


def joint_similarities(
    net: Candidates, outputs: Sequence[int], new: Batch, old: Batch, evaluator: CloneEvaluator
) -> list[float]:
    """Eq. (8) of every candidate: Sim(M_f, M_c | D_t) of the cloned outputs + Sim(M_t, M_c | D_o) of the target's.

    M_f is the source with the candidate's masks, by itself; `new` are images of the cloned classes, `old` of the
    target's. All networks see the same blanked images, prepared as each takes them.
    """
    if evaluator.similarity is None:
        return []
    neighbourhood, width = evaluator.neighbourhood, net.target.classes
    # `neighbourhood.outputs` is applied below, over the classes of each candidate alone
    logits = neighbourhood.model_copy(update={"output": "logit"})
    options: dict[str, Any] = {"settings": logits, "seed": evaluator.seed, "count": evaluator.similarity.vectors}

    def fit(forward: Callable[[Tensor], Tensor], columns: Sequence[int], model: Model, batch: Batch) -> Tensor:
        """Coefficients [P, N, Np + 1, O] of `forward`: images as `model` takes them -> logits [B, P, C]."""

        def flat(images: Tensor) -> Tensor:
            return neighbourhood.outputs(forward(images))[..., columns].flatten(1)

        labels = neighbourhood.find_segments(batch.index, batch.images)
        view = neighbourhood.view(batch.images, model.preprocess, labels)
        theta = fit_coefficients(flat, view, batch.index, **options)
        return theta.unflatten(2, (-1, len(columns))).movedim(2, 0)

    with evaluating(net):
        module = fit(net.forward_modules, outputs, net.source, new)
        cloned = fit(net.forward_normalized, range(width, width + len(outputs)), net.target, new)
        first = [float(similarity(module[k], cloned[k])) for k in range(len(net.branches))]
        if neighbourhood.output == "logit" and not any(isinstance(branch.head, FullHead) for branch in net.branches):
            return [value + 1 for value in first]  # the target's logits are the very same
        target = fit(lambda images: net.target.net(images)[:, None], range(width), net.target, old)
        joint = fit(net.forward_normalized, range(width), net.target, old)
    return [value + float(similarity(target[0], joint[k])) for k, value in enumerate(first)]
