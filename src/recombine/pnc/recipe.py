"""Partial network cloning: what a source knows of some classes, copied into a target that stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.models.freeze import digest
from recombine.models.registry import training_hint
from recombine.pnc import run_plots as pictures
from recombine.pnc import sources
from recombine.pnc.baselines import DirectEnsemble, FromScratch, Tuning, ensemble, from_scratch, tuned
from recombine.pnc.calibration import calibrate
from recombine.pnc.clone import file
from recombine.pnc.clone.network import Clone, ClonedNetwork
from recombine.pnc.cloning import Cloning, candidates, head_of, insert
from recombine.pnc.elastic import Elastic, elastic
from recombine.pnc.evaluation import (
    mask_series,
    measured,
    measured_alone,
    module_measures,
    similarity_by_class,
    storage,
    suffix_of,
)
from recombine.pnc.from_file import Saved, attached
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.localization import localize
from recombine.pnc.search import chosen, scores
from recombine.pnc.settings import PncSettings
from recombine.pnc.workbench import Workbench
from recombine.run.config import build, plain
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "cell", "check", "files", "run"]

OBJECTIVE = "accuracy_average"
"""What a hyper-parameter search maximises."""
BASELINES = {DirectEnsemble: ensemble, Tuning: tuned, Elastic: elastic, FromScratch: from_scratch}
"""What makes the network of each kind of settings that is no clone."""
VARIED = ("mask", "mask_kind", "scope", "surrogate", "use_complement", "keep_ratio", "bn_recalibrate", "adapter")
VARIED += ("align", "joint", "last_stage")
"""Settings of a clone that tables compare; none in the cells of what has no such setting."""


SETTINGS = PncSettings
"""The class that declares the config."""


def check(cfg: DictConfig) -> list[str]:
    """Problems of all networks, their data, the method and the neighbourhood, without loading any."""
    problems: list[str] = []
    hint = training_hint(str(cfg.target.name), cfg.weights_root)
    problems += [text + hint for text in zoo.check(cfg.target, weights_root=cfg.weights_root, frozen=True)]
    if not 0 < cfg.select_fraction < 1:
        problems.append(f"select_fraction={cfg.select_fraction}: between 0 and 1, such as select_fraction=0.1")
    method = None
    try:
        method = build(cfg.method)
        needed = not isinstance(method, Saved) or method.needs_sources
    except ConfigError as error:
        problems, needed = problems + error.problems, True
    problems += sources.problems(cfg, networks=needed)
    try:
        Neighbourhood.of(plain(cfg.lime))
    except ConfigError as error:
        problems += error.problems
    if len(cfg.sources) > 1 and method is not None and not isinstance(method, Cloning | Saved):
        problems.append(f"method={cfg.method.name} takes one source; method=pnc clones from {len(cfg.sources)}")
    if len(cfg.sources) > 1 and isinstance(method, Cloning):
        problems += alone_problems(method)
    if cfg.similarity is None and isinstance(method, Cloning) and method.search.metric == "similarity":
        problems.append(
            "method.search.metric=similarity measures eq. (8): give similarity too, such as {images:32,vectors:256}"
        )
    return problems + similarity_problems(plain(cfg)["similarity"], cfg.lime.grid)


def alone_problems(method: Cloning) -> list[str]:
    """What cannot be asked of the clones of several sources."""
    found = {"head": method.head == "full", "last_stage": method.last_stage == "localize"}
    return [f"method.{key}={getattr(method, key)} takes one source" for key, wrong in found.items() if wrong]


def files(cfg: DictConfig) -> list[Path]:
    """The clone files that are measured: with other ones the same command is not done yet."""
    method = build(cfg.method)
    return [Path(name) for name in method.files] if isinstance(method, Saved) else []


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
    try:
        known = sources.listed(cfg)
    except ConfigError:  # a refused config has a cell too
        known = []
    method = plain(cfg)["method"]
    positions = method.get("positions", "none") or "all"
    search = method.get("search") or {"mode": "none", "metric": "none"}
    names = {
        "target": cfg.target.name,
        "source": " + ".join(source.name for source in known),
        "sources": len(known),
        "dataset": cfg.dataset.name,
        "clone": " + ".join(" ".join(map(str, source.clone)) for source in known),
        "classes": sum(len({*source.clone}) for source in known),
        "method": cfg.method.name,
        "fraction": cfg.dataset.fraction,
        "use_target_data": "none" if method.get("last_stage") == "localize" else cfg.use_target_data,
        **{key: method.get(key, "none") for key in VARIED},
        "head": head_of(method["head"], cfg.use_target_data) if "head" in method else "none",
        "positions": positions if isinstance(positions, str) else " ".join(map(str, positions)),
        "search": " ".join(dict.fromkeys((search["mode"], search["metric"]))),
    }
    return names | ({"calibrate_epochs": cfg.calibrate_epochs} if len(known) > 1 else {})


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Add the classes by cloning, or by what it is compared with, and measure old and new classes together."""
    benches: list[Workbench] = []
    with ExitStack() as opened:
        for source in sources.listed(cfg):
            benches.append(Workbench(cfg, run, source, tuple(benches)))
            opened.callback(benches[-1].close)
        method = build(cfg.method)
        models = not isinstance(method, Saved) or method.needs_sources
        alone = measured_alone(benches, models)
        if isinstance(method, Cloning) and method.last_stage == "localize":
            yield from modules(benches[0], method, alone)
        elif isinstance(method, Cloning):
            yield clone(benches, method, alone)
        elif isinstance(method, Saved):
            yield Row(cell(cfg), alone | measured(benches, attached(benches, method)))
        else:
            net = BASELINES[type(method)](benches[0], method)
            yield Row(cell(cfg), alone | measured(benches, net))


def clone(benches: Sequence[Workbench], method: Cloning, alone: dict[str, float]) -> Row:
    """Learn a clone of every source by itself, calibrate several, measure and keep them (sections 5.6 and 11.2)."""
    first, cfg = benches[0], benches[0].cfg
    before = [digest(model) for model in (first.target, *(bench.source for bench in benches))]
    cloned = ClonedNetwork(first.target, first.original.class_names)
    metrics, series, learned = dict(alone), {}, []
    for number, bench in enumerate(benches, start=1):
        suffix = suffix_of(benches, number)
        part, facts, curves = learn(bench, method, suffix)
        learned.append((f"clone{suffix}", part))
        metrics |= {f"{key}{suffix}": value for key, value in facts.items()}
        series |= {f"{key}{suffix}": values for key, values in curves.items()}
    for name, part in learned:
        cloned.attach(part, name)
    if len(benches) > 1 and cfg.calibrate_epochs:
        calibrate(benches, cloned, cfg.calibrate_epochs, method.min_steps)
    metrics |= measured(benches, cloned)
    if [digest(cloned.restore()), *(digest(bench.source) for bench in benches)] != before:
        raise RuntimeError("cloning changed a network it must not change")
    if first.run.main:
        metrics |= keep(benches, method, learned, metrics)
    return Row(cell(cfg), metrics, series)


def learn(bench: Workbench, method: Cloning, suffix: str) -> tuple[Clone, dict[str, float], dict[str, list]]:
    """Localize, insert at every position, choose one, cut the clone out (section 5.6): it, its measures, its curves."""
    near = Neighbourhood.of(plain(bench.cfg.lime))
    net = candidates(bench, method)
    local = localize(bench, method, net, near)
    fit = insert(bench, method, net, near, local)
    curve = scores(bench, net, near)
    best = chosen(method.search, curve[method.search.metric])
    part, place = Clone(net.branches[best], bench.names), net.branches[best].position
    metrics = module_measures(bench, net, best, near) | part.parameters_by_part()
    metrics |= {"position": float(place.number), "source_position": float(place.source_number)}
    metrics |= {"fit_seconds": fit.seconds, **storage(bench, part)}
    if "similarity" in curve:
        metrics["similarity_inserted"] = curve["similarity"][best]
    series = {f"search_{key}": values for key, values in curve.items()} | mask_series(net, best)
    series |= similarity_by_class(bench, net, best, near)
    if bench.run.main:
        labels = [branch.position.label for branch in net.branches]
        pictures.leave(bench.run, curve, labels, best, f"search{suffix}")
    return part, metrics, series


def keep(
    benches: Sequence[Workbench], method: Cloning, learned: Sequence[tuple[str, Clone]], metrics: dict[str, float]
) -> dict[str, float]:
    """All clones in one file of the run's folder; its bytes, and those it has without the sources' weights (11.3)."""
    first = benches[0]
    facts = {"target_class_names": first.original.class_names, "dataset": first.cfg.dataset.name, "metrics": metrics}
    facts |= {"method": plain(first.cfg.method)}
    clones = [
        file.stored(part, name=name, target=first.target, source=bench.source, **facts)
        for (name, part), bench in zip(learned, benches, strict=True)
    ]
    path = file.write(first.run.dir / "clone.safetensors", clones)
    sent = file.size([file.as_reference(clone) for clone in clones])
    return {"clone_bytes": float(path.stat().st_size), "reference_bytes": float(sent)}


def modules(bench: Workbench, method: Cloning, alone: dict[str, float]) -> Iterator[Row]:
    """The module of every position by itself: how local it is, and how well it keeps what is cloned (section 9.2)."""
    near = Neighbourhood.of(plain(bench.cfg.lime))
    net = candidates(bench, method)
    localize(bench, method, net, near)
    for k, branch in enumerate(net.branches):
        weights = {"module_parameters": Clone(branch, bench.names).parameters_by_part()["module_parameters"]}
        metrics = {"accuracy_source": alone["accuracy_source"]} | module_measures(bench, net, k, near) | weights
        yield Row({**cell(bench.cfg), "position": branch.position.number}, metrics)
