"""Composes a network from a folder of checkpoints: which gives which class, and at which position, is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from recombine.core.errors import ConfigError
from recombine.data import Data
from recombine.models import weight_files
from recombine.models.factory import stored_names
from recombine.models.freeze import digest
from recombine.models.registry import config_names
from recombine.models.resolve import from_config
from recombine.models.serialization import kind_of, read_card
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.cloning import Cloning
from recombine.pnc.data import CloneData
from recombine.pnc.method_settings import CloningSettings, ComposeSettings
from recombine.pnc.search import predict_hits
from recombine.run.console import show

__all__ = ["Offer", "choose_offers", "compose", "find_offers", "index_zoo"]


OpenTask = Callable[[str, CloneData], CloneTask]
"""Opens a network of the folder, by its name, for some of the wanted classes."""


@dataclass(frozen=True)
class Offer:
    """What one network of the folder can give at one position, before anything is trained."""

    task: CloneTask
    """For all wanted classes that the network knows."""
    position: int
    recalls: dict[str, float]
    """Percentage of each class's images kept for selection that are answered right beside the target's classes."""
    parameters: float
    """Weights that the target would carry: cloned layers, adapter and new rows."""


def index_zoo(
    folder: Path, open_data: Callable[[Any], Data], networks: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """The class names of each checkpoint in a folder, by the network's name; those that name no classes are left out.

    A checkpoint's card has them, or names the data set it was trained on, which then has to be there. Those without a
    card whose name is one of config/model and that have ImageNet's 1000 classes have its names. With `networks`, of
    these names alone.
    """
    found = {}
    for path in weight_files.list_checkpoints(folder):
        name = weight_files.stem(path)
        if networks is None or name in networks:
            try:
                if names := _name_classes(path, open_data):
                    found[name] = names
            except (ConfigError, KeyError):
                continue
    return found


def _name_classes(path: Path, open_data: Callable[[Any], Data]) -> list[str] | None:
    if path.suffix != ".safetensors" or kind_of(path) is None:
        name = weight_files.stem(path)
        return stored_names(None, from_config(name).classes or 0) if name in config_names() else None
    card = read_card(path, "student")
    return card.get("class_names") or open_data(card["config"]["dataset"]).class_names


def find_offers(task: CloneTask, method: ComposeSettings) -> Iterator[Offer]:
    """What the task's source can give at each position: whole, on the best linear map of the target's features."""
    cloning = Cloning(task, method)
    cloning.start_adapters()
    _, (hits, labels) = predict_hits(task, cloning.net, "select")
    for k, branch in enumerate(cloning.net.positions):
        right = [hits[labels == task.data.target.classes + c, k] for c in range(len(task.data.outputs))]
        recalls = {
            name: 100 * float(each.double().mean()) for name, each in zip(task.data.class_names, right, strict=True)
        }
        parameters = sum(Clone(branch, task.data.class_names).count_parameters().values())
        yield Offer(task, branch.position.number, recalls, parameters)


def choose_offers(offers: Sequence[Offer], budget: float | None) -> dict[str, Offer]:
    """Who gives each class: the move that gains most recall per added weight is made until none gains within `budget`.

    A move takes one offer for all classes it knows better than who gives them so far; offers that no class needs any
    more cost nothing.
    """
    chosen: dict[str, Offer] = {}
    while True:
        best, rate = chosen, 0.0
        for offer in offers:
            better = {name for name, value in offer.recalls.items() if value > _recall(chosen, name)}
            moved = chosen | dict.fromkeys(better, offer)
            cost = _cost(moved)
            gain = sum(offer.recalls[name] - _recall(chosen, name) for name in better)
            fits = budget is None or cost <= budget
            if better and fits and gain / max(1.0, cost - _cost(chosen)) > rate:
                best, rate = moved, gain / max(1.0, cost - _cost(chosen))
        if best is chosen:
            return chosen
        chosen = best


def _recall(chosen: dict[str, Offer], name: str) -> float:
    return chosen[name].recalls[name] if name in chosen else 0.0


def _cost(chosen: dict[str, Offer]) -> float:
    return sum(offer.parameters for offer in {id(offer): offer for offer in chosen.values()}.values())


def list_offers(offers: Sequence[Offer], chosen: dict[str, Offer]) -> dict[str, list]:
    """Series with an entry for each offer: who, where, how well, how large, and the classes taken from it."""
    return {
        "offer_source": [offer.task.source.name for offer in offers],
        "offer_position": [offer.position for offer in offers],
        "offer_recalls": [offer.recalls for offer in offers],
        "offer_parameters": [offer.parameters for offer in offers],
        "offer_chosen": [[name for name, who in chosen.items() if who is offer] for offer in offers],
    }


def describe(offers: Sequence[Offer], chosen: dict[str, Offer]) -> Table:
    """Why each network was chosen, for a terminal."""
    shown = Table("network", "R", "recall by class (%)", "weights", "per 1,000 weights", "taken for")
    for offer in sorted(offers, key=lambda offer: (offer.task.source.name, offer.position)):
        total = sum(offer.recalls.values())
        shown.add_row(
            *(offer.task.source.name, str(offer.position)),
            ", ".join(f"{name} {value:.0f}" for name, value in offer.recalls.items()),
            *(f"{offer.parameters:,.0f}", f"{1000 * total / offer.parameters:.1f}"),
            ", ".join(name for name, who in chosen.items() if who is offer),
        )
    return shown


def _ask(
    known: Mapping[str, list[str]],
    task: OpenTask,
    data: CloneData,
    method: ComposeSettings,
) -> tuple[list[Offer], list[str]]:
    """What every network that knows a wanted class offers; and of those that cannot be cloned from, why."""
    offers: list[Offer] = []
    unfit: list[str] = []
    for network, classes in known.items():
        wanted = [name for name in data.class_names if name in classes]
        if not wanted:
            continue
        try:
            made = task(network, data.take(wanted, [classes.index(name) for name in wanted]))
            if digest(made.source) == digest(made.target):
                raise ConfigError("it is the target itself")
            offers += find_offers(made, method)
        except ConfigError as error:
            unfit.append(f"{network} is left out: {error}")
    for text in unfit:
        print(text)
    return offers, unfit


def _why_not(left: Sequence[str], offers: Sequence[Offer], method: ComposeSettings) -> str:
    """Why nobody gives the classes that are `left`."""
    unknown = [name for name in left if not any(offer.recalls.get(name) for offer in offers)]
    if unknown:
        return (
            f"no network in method.zoo={method.zoo} answers any kept image of {', '.join(unknown)} right beside the "
            f"target's classes; leave them out of clone=, or keep more images (source_data.fraction=, select_fraction=)"
        )
    least = min(offer.parameters for offer in offers)
    return (
        f"method.max_parameters={method.max_parameters} leaves no network for {', '.join(left)}; "
        f"the smallest clone has {least:,.0f} weights"
    )


def compose(
    task: OpenTask, data: CloneData, method: ComposeSettings
) -> tuple[list[CloneTask], list[CloningSettings], dict[str, list]]:
    """Tasks of the chosen networks with the method at the chosen positions, and series that say why.

    `data`: of the target, and of all wanted classes. `task` opens a network of the folder for such data. ConfigError if
    none knows a wanted class, or none fits the budget.
    """
    names = data.class_names
    known = index_zoo(Path(method.zoo), data.open_data, method.networks)
    offers, unfit = _ask(known, task, data, method)
    absent = [name for name in names if not any(name in offer.recalls for offer in offers)]
    if absent:
        told = [f"{name}: {', '.join(map(str, classes[:12]))}" for name, classes in known.items()] + unfit
        raise ConfigError(
            f"no network in method.zoo={method.zoo} knows {', '.join(absent)}; its networks know "
            + ("; ".join(told) or "no classes by name, as those do that recombine pretrain leaves")
        )
    chosen = choose_offers(offers, method.max_parameters)
    if left := [name for name in names if name not in chosen]:
        raise ConfigError(_why_not(left, offers, method))
    used = list({id(chosen[name]): chosen[name] for name in names}.values())
    show(describe(offers, chosen))
    tasks: list[CloneTask] = []
    methods: list[CloningSettings] = []
    for number, offer in enumerate(used, start=1):
        given = [name for name, who in chosen.items() if who is offer]
        whole = offer.task.data
        outputs = [whole.outputs[whole.class_names.index(name)] for name in given]
        trainer = replace(offer.task.trainer, folder=f"source{number}/")
        tasks.append(replace(offer.task, data=whole.take(given, outputs), trainer=trainer))
        methods.append(method.model_copy(update={"positions": [offer.position]}))
    return tasks, methods, list_offers(offers, chosen)
