"""Configs of cloning on the digits, and what a run of one is made of."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from recombine.core.results import read_rows
from recombine.core.settings import to_dict
from recombine.models import Model
from recombine.pnc import recipe
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.data import CloneData, open_clone_data
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.networks import build_source_networks, build_target
from recombine.pnc.settings import PncSettings
from recombine.pnc.trainer import CloneTrainer
from recombine.run.launch import launch
from tests import composing
from tests.core.fitting import SmallRun

QUICK = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "lime.num_fit=40", "optimizer.lr=0.003"]
QUICK += ["similarity={images:4,vectors:40}"]
SHORT = ["method.localize_epochs=1", "method.insert_epochs=1", "method.min_steps=4", "method.positions=[1,2]"]


def composed(folder, weights, *overrides):
    roots = [
        f"data_root={folder}",
        f"weights_root={weights}",
        f"cache_root={folder / 'c'}",
        f"output_root={folder / 'o'}",
    ]
    networks = ["model@target=any", "target.name=high", "model@source=any", "source.name=low"]
    return composing.composed("pnc", *roots, *networks, *QUICK, *overrides)


def launched(folder, weights, *overrides):
    cfg = composed(folder, weights, *overrides)
    launch(recipe, cfg)
    (row,) = read_rows(folder / "o")
    return row


@dataclass
class Parts:
    """Data, networks, trainer and evaluator of a run."""

    pairs: list[CloneData]
    target: Model
    sources: list[Model]
    trainer: CloneTrainer
    evaluator: CloneEvaluator

    @property
    def data(self) -> CloneData:
        return self.pairs[0]

    @property
    def source(self) -> Model:
        return self.sources[0]

    @property
    def task(self) -> CloneTask:
        return CloneTask(self.target, self.source, self.data, self.trainer, self.evaluator)


@contextmanager
def open_parts(folder, weights, *overrides):
    settings, run = PncSettings.of(to_dict(composed(folder, weights, *overrides))), SmallRun(folder)
    run.cache = folder / "c"
    with ExitStack() as stack:
        pairs = open_clone_data(settings, run, stack)
        target = build_target(settings, run, pairs[0].target)
        sources = build_source_networks(settings, settings.read_method(), run, pairs, target)
        evaluator = CloneEvaluator.from_settings(settings, run, target)
        yield Parts(pairs, target, sources, CloneTrainer.from_settings(settings, run), evaluator)
