"""What is measured of a clone: module, similarity, accuracies in the joint label space, costs (section 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recombine import models as zoo
from recombine.engine.evaluate import Predictions, evaluating, predict
from recombine.models.overview import flops
from recombine.pnc.calibration import offsets
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.network import Clone
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.similarity import coefficients, similarity
from recombine.pnc.metrics import accuracy, cloned_measures, percent, source_measures, stored_bytes
from recombine.pnc.workbench import Workbench
from recombine.run.console import show

__all__ = [
    "mask_series",
    "measured",
    "measured_alone",
    "module_measures",
    "similarity_by_class",
    "storage",
    "suffix_of",
]


def suffix_of(benches: Sequence[Workbench], number: int) -> str:
    """What the metrics of one of several sources end in."""
    return f"_{number}" if len(benches) > 1 else ""


def measured_alone(benches: Sequence[Workbench], sources_too: bool) -> dict[str, float]:
    """What target and sources score on the test images of their own classes; shown with what the networks are."""
    first = benches[0]
    shown = {first.target: accuracy(first.alone(first.target, first.original))}
    found = {"accuracy_target": shown[first.target]}
    for number, bench in enumerate(benches if sources_too else (), start=1):
        said = bench.alone(bench.source, bench.source_data)
        shown[bench.source] = accuracy(said)
        facts = {"accuracy_source": shown[bench.source], **source_measures(said, bench.outputs)}
        found |= {f"{key}{suffix_of(benches, number)}": value for key, value in facts.items()}
    if first.run.main:
        show(zoo.describe(list(shown), {model.name: value for model, value in shown.items()}))
    return found


def storage(bench: Workbench, clone: Clone) -> dict[str, float]:
    """Bytes of both whole networks, and of what a clone learned: adapter, head and one bit a filter (table T8)."""
    bits = sum(len(mask) for mask in clone.masks)
    return {
        "target_bytes": stored_bytes(bench.target.net),
        "source_bytes": stored_bytes(bench.source.net),
        "learned_bytes": stored_bytes(clone.adapter, clone.head) + (bits + 7) // 8,
    }


def mask_series(net: Candidates, branch: int) -> dict[str, list]:
    """Which filters of which layers are kept, as hexadecimal numbers with a bit a filter, the first one highest."""
    chosen = net.branches[branch]
    bits = ["".join(str(int(kept)) for kept in mask.tolist()) for mask in chosen.masks()]
    numbers = [f"{int(text, 2):0{(len(text) + 3) // 4}x}" for text in bits]
    return {"mask_layers": [group.name for group in chosen.groups], "masks": numbers}


def measured(benches: Sequence[Workbench], cloned: nn.Module) -> dict[str, float]:
    """Accuracies of a network in the joint label space of all sources on the test images.

    Of several sources also each by itself, and what is left when the first is detached, whose outputs then go.
    """
    first, starts = benches[0], offsets(benches)
    own, target = first.said_of_original(cloned, "test"), first.alone(first.target, first.original).logits
    said = [bench.said_of_cloned(cloned, "test", start) for bench, start in zip(benches, starts, strict=True)]
    found = cloned_measures(own, _pooled(said), target) | costs(benches, cloned)
    if len(benches) > 1:
        for number, each in enumerate(said, start=1):
            found[f"accuracy_cloned_{number}"] = accuracy(each)
        gone = range(starts[0], starts[1])
        left = cloned_measures(_without(own, gone), _without(_pooled(said[1:]), gone), target)
        names = ("accuracy_original", "accuracy_cloned", "accuracy_average")
        found |= {f"{name}_without_1": left[name] for name in names}
    return found


def costs(benches: Sequence[Workbench], cloned: nn.Module) -> dict[str, float]:
    """Operations beside the target's, and what training has to say of itself."""
    first = benches[0]
    image = torch.zeros(1, 3, first.target.canvas, first.target.canvas, dtype=torch.uint8, device=first.run.device)
    with evaluating(cloned):
        found = {"flops_ratio": flops(cloned, image) / flops(first.target, image)}
    for number, bench in enumerate(benches, start=1):
        facts = {"samples_original": 0.0, "samples_cloned": 0.0} | bench.facts
        found |= {f"{key}{suffix_of(benches, number)}": value for key, value in facts.items()}
    return found


def _pooled(said: Sequence[Predictions]) -> Predictions:
    return Predictions(*(torch.cat(values) for values in zip(*said, strict=True)))


def _without(said: Predictions, gone: range) -> Predictions:
    """Without the outputs of a detached clone; those behind it move up."""
    kept = [k for k in range(said.logits.shape[1]) if k not in gone]
    moved = said.labels - len(gone) * (said.labels >= gone.start)
    return said._replace(logits=said.logits[:, kept], labels=moved)


class _Module(nn.Module):
    """The masked source by itself."""

    def __init__(self, net: Candidates, branch: int) -> None:
        super().__init__()
        self.net, self.branch = net, branch

    def forward(self, images: Tensor) -> Tensor:
        return self.of_normalised(self.net.source.preprocess(images))

    def of_normalised(self, images: Tensor) -> Tensor:
        values, _ = self.net.of_source(images)
        return self.net.branches[self.branch].upper(values[self.branch])[1].float()


def module_measures(bench: Workbench, net: Candidates, branch: int, near: Neighbourhood) -> dict[str, float]:
    """How well the masked source tells the cloned classes from its others (section 8.4): both sides, always."""
    module = _Module(net, branch)
    said = predict(module, bench.whole_source(), precision=bench.cfg.engine.precision)
    answer = said.logits.argmax(1)
    cloned = sum(said.labels == k for k in bench.outputs).bool()
    claimed = sum(answer == k for k in bench.outputs).bool()
    facts = {"module_accuracy": percent(answer[cloned] == said.labels[cloned])}
    if not cloned.all():
        facts["module_false_positives"] = percent(claimed[~cloned])
        facts["module_balanced"] = (facts["module_accuracy"] + 100 - facts["module_false_positives"]) / 2
    masks = net.branches[branch].masks()
    if masks:
        facts["kept_filters"] = 100 * sum(int(m.sum()) for m in masks) / sum(len(m) for m in masks)
    return facts | similarities(bench, module, near)


def similarities(bench: Workbench, module: _Module, near: Neighbourhood) -> dict[str, float]:
    """How alike module and source behave around images of the cloned classes, and of the source's others (8.3)."""
    if bench.cfg.similarity is None:
        return {}
    others = [k for k in range(bench.source.classes) if k not in bench.outputs]
    groups = {"cloned": bench.outputs, "others": others}
    return {f"similarity_{name}": _similarity(bench, module, near, some) for name, some in groups.items() if some}


def similarity_by_class(bench: Workbench, net: Candidates, branch: int, near: Neighbourhood) -> dict[str, list]:
    """The same around each class of the source by itself, on the outputs of the cloned ones (figure F2)."""
    if bench.cfg.similarity is None or not bench.cfg.similarity.by_class:
        return {}
    module = _Module(net, branch)
    values = [_similarity(bench, module, near, [k]) for k in range(bench.source.classes)]
    return {"similarity_by_class": values, "source_classes": bench.source_data.class_names}


def _similarity(bench: Workbench, module: _Module, near: Neighbourhood, classes: list[int]) -> float:
    settings = bench.cfg.similarity
    batch = bench.some_of_source(settings.images, classes)
    images = bench.source.preprocess(batch.images)
    options = {"count": settings.vectors, "columns": bench.outputs}
    asked = (module.of_normalised, bench.source.net)
    thetas = [coefficients(ask, images, batch.index, near, bench.run.seed, **options) for ask in asked]
    return float(similarity(*thetas))
