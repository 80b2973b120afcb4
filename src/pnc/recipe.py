"""Partial network cloning: what a source knows of some classes, copied into a target that stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src import data as datasets
from src import models as zoo
from src.core.config import build, plain
from src.core.errors import ConfigError
from src.core.evaluate import evaluating, predict
from src.core.run import Run
from src.core.types import Row
from src.models.frozen import digest
from src.models.names import training_hint
from src.models.summary import flops
from src.pnc import file
from src.pnc.baselines import DirectEnsemble, FromScratch, Tuning, ensemble, from_scratch, tuned
from src.pnc.candidates import Candidates
from src.pnc.cloned import Clone, ClonedNetwork
from src.pnc.cloning import Cloning, candidates, choose, head_of, insert
from src.pnc.elastic import Elastic, elastic
from src.pnc.localizing import localize
from src.pnc.measures import cloned_measures, percent, source_measures, stored_bytes, top1
from src.pnc.neighbourhood import Neighbourhood
from src.pnc.similarity import coefficients, similarity
from src.pnc.workbench import Workbench

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "cell", "check", "run"]

OBJECTIVE = "accuracy_average"
"""What a hyper-parameter search maximises."""
BASELINES = {DirectEnsemble: ensemble, Tuning: tuned, Elastic: elastic, FromScratch: from_scratch}
"""What makes the network of each kind of settings that is no clone."""
VARIED = ("mask", "mask_kind", "scope", "surrogate", "use_complement", "keep_ratio", "bn_recalibrate", "adapter")
VARIED += ("joint", "last_stage")
"""Settings of a clone that tables compare; none in the cells of what has no such setting."""


def check(cfg: DictConfig) -> list[str]:
    """Problems of both networks, their data, the method and the neighbourhood, without loading any."""
    problems = datasets.check(cfg)
    problems += [f"source_data: {text}" for text in datasets.check({**cfg, "dataset": cfg.source_data})]
    for node in (cfg.target, cfg.source):
        hint = training_hint(str(node.name), cfg.weights_root)
        problems += [text + hint for text in zoo.check(node, weights_root=cfg.weights_root, frozen=True)]
    if not 0 < cfg.select_fraction < 1:
        problems.append(f"select_fraction={cfg.select_fraction}: between 0 and 1, such as select_fraction=0.1")
    for make in (lambda: Neighbourhood.of(plain(cfg.neigh)), lambda: build(cfg.method)):
        try:
            make()
        except ConfigError as error:
            problems += error.problems
    return problems + similarity_problems(plain(cfg)["similarity"], cfg.neigh.grid)


def similarity_problems(settings: Any, grid: Any) -> list[str]:
    """What is wrong with `similarity`, which is only measured after everything is trained."""
    if settings is None:
        return []
    least = {"images": 1, "vectors": 2 * (grid**2 + 1) if isinstance(grid, int) else 1}
    if not isinstance(settings, dict) or settings.keys() != {*least, "by_class"}:
        return ["similarity: {images: 32, vectors: 256, by_class: false}, or null"]
    wrong = [] if isinstance(settings["by_class"], bool) else ["similarity.by_class: true or false"]
    return wrong + [
        f"similarity.{key}={settings[key]}: an integer of at least {low}; try similarity.{key}={low}"
        for key, low in least.items()
        if type(settings[key]) is not int or settings[key] < low
    ]


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    method, clone = plain(cfg)["method"], plain(cfg)["clone"]
    positions = method.get("positions", "none") or "all"
    return {
        "target": cfg.target.name,
        "source": cfg.source.name,
        "dataset": cfg.dataset.name,
        "clone": " ".join(map(str, clone)),
        "classes": len({*clone}),
        "method": cfg.method.name,
        "fraction": cfg.dataset.fraction,
        "use_original": "none" if method.get("last_stage") == "localize" else cfg.use_original,
        **{key: method.get(key, "none") for key in VARIED},
        "head": head_of(method["head"], cfg.use_original) if "head" in method else "none",
        "positions": positions if isinstance(positions, str) else " ".join(map(str, positions)),
    }


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Add the classes by cloning, or by what it is compared with, and measure old and new classes together."""
    bench = Workbench(cfg, run)
    try:
        bench.describe()
        method = build(cfg.method)
        if isinstance(method, Cloning):
            yield from clone(bench, method)
        else:
            net = BASELINES[type(method)](bench, method)
            yield Row(cell(cfg), measured(bench, net))
    finally:
        bench.close()


def clone(bench: Workbench, method: Cloning) -> Iterator[Row]:
    """Localize, insert at every position, choose one, cut the clone out and keep it (section 5.6)."""
    cfg, near = bench.cfg, Neighbourhood.of(plain(bench.cfg.neigh))
    before = [digest(model) for model in (bench.target, bench.source)]
    net = candidates(bench, method)
    local = localize(bench, method, net, near)
    if method.last_stage == "localize":
        yield from modules(bench, net, near)
        return
    fit = insert(bench, method, net, near, local)
    best, curve = choose(bench, net)
    metrics = module_measures(bench, net, best, near)
    names = [bench.source_data.class_names[k] for k in bench.outputs]
    part = Clone(net.branches[best], names)
    cloned = ClonedNetwork(bench.target, bench.original.class_names).attach(part, "clone")
    metrics |= measured(bench, cloned) | part.parameters_by_part()
    metrics |= {"position": float(part.position.number), "fit_seconds": fit.seconds}
    metrics |= storage(bench, part)
    series = {f"search_{key}": values for key, values in curve.items()} | mask_series(net, best)
    series |= similarity_by_class(bench, net, best, near)
    if [digest(cloned.restore()), digest(bench.source)] != before:
        raise RuntimeError("cloning changed a network it must not change")
    if bench.run.main:
        facts = {"target_class_names": bench.original.class_names, "dataset": cfg.dataset.name}
        facts |= {"metrics": metrics, "method": plain(cfg.method)}
        networks = {"target": bench.target, "source": bench.source}
        path = file.save(part, bench.run.dir / "clone.safetensors", name="clone", **networks, **facts)
        metrics["clone_bytes"] = float(path.stat().st_size)
        short = file.save(part, bench.run.dir / "clone-reference.safetensors", name="clone", reference=True, **networks)
        metrics["reference_bytes"] = float(short.stat().st_size)
    yield Row(cell(cfg), metrics, series)


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


def modules(bench: Workbench, net: Candidates, near: Neighbourhood) -> Iterator[Row]:
    """The module of every position by itself: how local it is, and how well it keeps what is cloned (section 9.2)."""
    alone = {"accuracy_source": top1(bench.alone(bench.source, bench.source_data))}
    for k, branch in enumerate(net.branches):
        part = Clone(branch, [bench.source_data.class_names[i] for i in bench.outputs])
        weights = {"module_parameters": part.parameters_by_part()["module_parameters"]}
        metrics = alone | module_measures(bench, net, k, near) | weights
        yield Row({**cell(bench.cfg), "position": branch.position.number}, metrics)


def measured(bench: Workbench, cloned: nn.Module) -> dict[str, float]:
    """Accuracies of a network in the joint label space on the test images, beside those of both networks alone."""
    own, new = bench.said(cloned, "test")
    target, source = (bench.alone(model, data) for model, data in bench.roles)
    facts = {"accuracy_target": top1(target), "accuracy_source": top1(source)}
    facts |= source_measures(source, bench.outputs) | cloned_measures(own, new, target.logits)
    image = torch.zeros(1, 3, bench.target.canvas, bench.target.canvas, dtype=torch.uint8, device=bench.run.device)
    with evaluating(cloned):
        facts["flops_ratio"] = flops(cloned, image) / flops(bench.target, image)
    return facts | {"samples_original": 0.0, "samples_cloned": 0.0} | bench.facts


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
