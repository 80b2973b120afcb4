"""Which position is taken: every candidate is scored on images kept for choices, then one is chosen (5.5 and 5.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.core.types import Batch
from recombine.engine.evaluate import evaluating
from recombine.models import Model
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.network import Clone
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.similarity import coefficients, similarity
from recombine.pnc.metrics import percent
from recombine.pnc.workbench import Workbench

__all__ = ["PositionSearch", "chosen", "scores"]

MODES = ("exhaustive", "greedy")
METRICS = ("average", "similarity")


@dataclass(frozen=True)
class PositionSearch:
    """How one candidate is chosen; the paper's order and stopping rule are not known to us.

    All candidates are trained and scored in one pass, so that greedy saves nothing: it tells where it would stop.
    """

    mode: str = "exhaustive"
    """exhaustive: the best of all; greedy: from the last position to the first until `patience` are no better."""
    metric: str = "average"
    """average: mean of old and new accuracy; similarity: eq. (8), which needs no label."""
    patience: int = 1
    min_delta: float = 0.0
    """An earlier position is better if it gains more than this: points of accuracy, or of eq. (8), at most 2."""

    def __post_init__(self) -> None:
        found = [
            f"method.search.{key}={getattr(self, key)}: one of {', '.join(allowed)} is needed"
            for key, allowed in (("mode", MODES), ("metric", METRICS))
            if getattr(self, key) not in allowed
        ]
        if type(self.patience) is not int or self.patience < 1:
            found.append(f"method.search.patience={self.patience}: a number of positions of at least 1 is needed")
        if type(self.min_delta) not in (int, float) or not self.min_delta >= 0:
            found.append(f"method.search.min_delta={self.min_delta}: a number of at least 0 is needed")
        if found:
            raise ConfigError(found)


def chosen(search: PositionSearch, values: Sequence[float]) -> int:
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


def scores(bench: Workbench, net: Candidates, near: Neighbourhood) -> dict[str, list]:
    """Every candidate on the images kept for choices: position, accuracies, eq. (8) if measured, and parameters."""
    own, new = (
        each._replace(logits=each.logits.unflatten(1, (len(net.branches), -1)))
        for each in bench.said(_Flat(net), "select")
    )
    places = [branch.position for branch in net.branches]
    curve: dict[str, list] = {"position": [place.number for place in places]}
    curve["source_position"] = [place.source_number for place in places]
    for name, said in (("original", own), ("cloned", new)):
        right = said.logits.argmax(2) == said.labels[:, None]
        curve[name] = [percent(column) for column in right.unbind(1)]
    curve["average"] = [(a + b) / 2 for a, b in zip(curve["original"], curve["cloned"], strict=True)]
    if bench.cfg.similarity is not None:
        curve["similarity"] = similarities(bench, net, near)
    for branch in net.branches:
        for name, count in Clone(branch, bench.names).parameters_by_part().items():
            curve.setdefault(name, []).append(count)
    return curve


def similarities(bench: Workbench, net: Candidates, near: Neighbourhood) -> list[float]:
    """Eq. (8) of every candidate: Sim(M_f, M_c | D_t) of the cloned outputs + Sim(M_t, M_c | D_o) of the target's.

    M_f is the source with the candidate's masks, by itself. All see the same blanked images of those kept for choices,
    each as it wants them, and all candidates are asked at once.
    """
    settings, width = bench.cfg.similarity, bench.original.classes
    once = replace(near, output="logit")  # `near.outputs` is taken below, over the classes of each candidate alone

    def local(ask: Callable[[Tensor], Tensor], columns: Sequence[int], model: Model, batch: Batch) -> Tensor:
        """Coefficients [P, N, Np + 1, O] of what `ask` says of images as `model` wants them, [B, P, C]."""

        def flat(images: Tensor) -> Tensor:
            return near.outputs(ask(images))[..., columns].flatten(1)

        options = {"settings": once, "seed": bench.run.seed, "count": settings.vectors}
        theta = coefficients(flat, model.preprocess(batch.images), batch.index, **options)
        return theta.unflatten(2, (-1, len(columns))).movedim(2, 0)

    new, own = (bench.some(data, "select", settings.images, bench.target) for data in (bench.cloned, bench.original))
    with evaluating(net):
        module = local(net.of_modules, bench.outputs, bench.source, new)
        cloned = local(net.of_normalised, range(width, width + len(bench.outputs)), bench.target, new)
        target = local(lambda images: net.target.net(images)[:, None], range(width), bench.target, own)
        original = local(net.of_normalised, range(width), bench.target, own)
    return [
        float(similarity(module[k], cloned[k]) + similarity(target[0], original[k])) for k in range(len(net.branches))
    ]
