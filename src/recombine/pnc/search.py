"""Which position is taken: every candidate is scored on images kept for selection, then one is selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from recombine.core.types import Batch
from recombine.engine.evaluate import evaluating
from recombine.models import Model
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.part import Clone
from recombine.pnc.data import CloneData, sample_batch
from recombine.pnc.evaluator import Evaluator
from recombine.pnc.local.similarity import fit_coefficients, similarity
from recombine.pnc.method_settings import PositionSearchSettings
from recombine.pnc.metrics import percent

__all__ = ["joint_similarities", "score_positions", "select_position"]


def select_position(search: PositionSearchSettings, values: Sequence[float]) -> int:
    """Which of the candidates' `values`, from input to output, is taken; of equal ones the last, the smallest clone."""
    best, worse = len(values) - 1, 0
    for place in reversed(range(len(values) - 1)):
        if values[place] > values[best] + search.min_delta:
            best, worse = place, 0
        else:
            worse += 1
        if search.mode == "greedy" and worse == search.patience:
            break
    return best


class _Flat(nn.Module):
    """Logits [B, P, C] of all candidates as [B, P C], one pass for all."""

    def __init__(self, net: Candidates) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).flatten(1)


def score_positions(net: Candidates, data: CloneData, evaluator: Evaluator) -> dict[str, list]:
    """Every candidate on the images kept for selection: position, accuracies, eq. (8) if measured, and parameters."""
    flat = evaluator.predict_joint(_Flat(net), data, "select")
    positions = [branch.position for branch in net.branches]
    curve: dict[str, list] = {"position": [position.number for position in positions]}
    curve["source_position"] = [position.source_number for position in positions]
    for name, predictions in zip(("original", "cloned"), flat, strict=True):
        logits = predictions.logits.unflatten(1, (len(positions), -1))
        right = logits.argmax(2) == predictions.labels[:, None]
        curve[name] = [percent(column) for column in right.unbind(1)]
    curve["average"] = [(a + b) / 2 for a, b in zip(curve["original"], curve["cloned"], strict=True)]
    if evaluator.similarity is not None:
        count, canvas = evaluator.similarity.images, evaluator.canvas
        new, old = (
            sample_batch(each, "train", data.split(each, "select"), count, canvas)
            for each in (data.cloned, data.target)
        )
        curve["similarity"] = joint_similarities(net, data.outputs, new, old, evaluator)
    for branch in net.branches:
        for name, parameters in Clone(branch, data.class_names).count_parameters().items():
            curve.setdefault(name, []).append(parameters)
    return curve


def joint_similarities(
    net: Candidates, outputs: Sequence[int], new: Batch, old: Batch, evaluator: Evaluator
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
    options = {"settings": logits, "seed": evaluator.seed, "count": evaluator.similarity.vectors}

    def fit(forward: Callable[[Tensor], Tensor], columns: Sequence[int], model: Model, batch: Batch) -> Tensor:
        """Coefficients [P, N, Np + 1, O] of `forward`: images as `model` takes them -> logits [B, P, C]."""

        def flat(images: Tensor) -> Tensor:
            return neighbourhood.outputs(forward(images))[..., columns].flatten(1)

        theta = fit_coefficients(flat, model.preprocess(batch.images), batch.index, **options)
        return theta.unflatten(2, (-1, len(columns))).movedim(2, 0)

    with evaluating(net):
        module = fit(net.forward_modules, outputs, net.source, new)
        cloned = fit(net.forward_normalized, range(width, width + len(outputs)), net.target, new)
        target = fit(lambda images: net.target.net(images)[:, None], range(width), net.target, old)
        joint = fit(net.forward_normalized, range(width), net.target, old)
    return [float(similarity(module[k], cloned[k]) + similarity(target[0], joint[k])) for k in range(len(net.branches))]
