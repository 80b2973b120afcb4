"""Measures parts of the project against the plain way, in one process and in turns, as ratios.

python scripts/bench.py                     every section
python scripts/bench.py engine --rows out   one section; the rows also go to out/bench-engine.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn import functional as F

from src import models
from src.core.engine import Engine
from src.core.evaluate import predict, predict_many
from src.core.method import Supervised
from src.core.optim import cosine
from src.core.run import Run
from src.core.signals import StopSignals
from src.core.tracking import Tracker
from src.core.types import Batch, Loader
from src.data import open_data
from src.flips.comparison import Comparison, ordered_pairs, pair_rows

Row = dict[str, object]
SECTIONS: dict[str, Callable[[], list[Row]]] = {}


def section(function: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
    """Make a function a section of this command; it returns rows with name, ours, plain, ratio and unit."""
    SECTIONS[function.__name__] = function
    return function


def alternate(ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Run both in turns after one warm-up each; medians of both and the median of the ratios of neighbours.

    Neighbours share the machine's momentary load, so their ratio is steadier than that of the medians.
    """
    ours(), plain()
    pairs = []
    for number in range(rounds):
        first, second = (ours, plain) if number % 2 == 0 else (plain, ours)
        one, two = first(), second()
        pairs.append((one, two) if first is ours else (two, one))
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(two for _, two in pairs),
        statistics.median(one / two for one, two in pairs),
    )


@section
def engine() -> list[Row]:
    """A training step of the engine against a hand-written loop; 1 is equal, 1.03 is 3 % slower."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, width, batch in (("small net", 16, 64), ("tiny net", 4, 16)):
        data = _Resident(batch, device)
        with tempfile.TemporaryDirectory() as folder:
            ours, plain, ratio = alternate(
                partial(_engine_seconds, data, width, Path(folder)), partial(_plain_seconds, data, width), rounds=12
            )
        unit = f"ms of {'wall' if device.type == 'cuda' else 'processor'} time per step"
        name = f"{name}, batch {batch}, {device.type}"
        rows.append({"name": name, "ours": 1e3 * ours, "plain": 1e3 * plain, "ratio": ratio, "unit": unit})
    return rows


@section
def loader() -> list[Row]:
    """FFCV against a torch DataLoader with Pillow: how many times less CPU time a 224 px training image takes."""
    from bench_loader import loader as measure

    return measure(alternate)


@section
def transfer() -> list[Row]:
    """Steps of KL+DP: how many times faster than sample by sample, and with frozen logits remembered."""
    from bench_transfer import transfer as measure

    return measure(alternate)


@section
def patch() -> list[Row]:
    """Training a one-module patch on kept prefix values against full passes; a patched pass against the base's."""
    from bench_patch import patch as measure

    return measure(alternate)


@section
def flips() -> list[Row]:
    """All ordered pairs of ten networks from ten evaluations, against evaluating both networks of every pair anew."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nodes = [{"name": "lenet5"}] * 4 + [{"name": "cnn", "widths": [8 * k, 16 * k, 16 * k, 32]} for k in (1, 1, 2, 2)]
    nodes += [{"name": "resnet8", "width": 8}] * 2
    nets = [models.build({**node, "weights": None}, classes=10, seed=seed) for seed, node in enumerate(nodes)]
    named = {f"{node['name']}-{seed}": net.to(device) for seed, (node, net) in enumerate(zip(nodes, nets, strict=True))}
    settings = {"loader": {"kind": "resident"}, "data_root": "", "seed": 0, "device": device}
    with tempfile.TemporaryDirectory() as folder:
        data = open_data({"name": "digits"}, cache_root=folder, **settings)
        test = data.loader("test", 300, train=False)
        ours, plain, ratio = alternate(partial(_all_pairs, named, test), partial(_pair_by_pair, named, test), rounds=3)
        data.close()
    unit = f"s of {'wall' if device.type == 'cuda' else 'processor'} time for 90 pairs"
    return [{"name": f"10 networks, {device.type}", "ours": ours, "plain": plain, "ratio": 1 / ratio, "unit": unit}]


def _all_pairs(nets: dict[str, models.Model], test: Loader) -> float:
    start = _now(test.device)
    predictions = predict_many(nets, lambda canvas: test)
    compared = Comparison(list(nets), [p.logits for p in predictions.values()], predictions["lenet5-0"].labels)
    names = [str(label) for label in range(10)]
    options = {"class_names": names, "claimed": {}, "similarity": None, "legacy": False}
    rows = pair_rows(compared, ordered_pairs(len(nets), "all", 0, False), {}, **options)
    assert len(rows) == 90
    return _now(test.device) - start


def _pair_by_pair(nets: dict[str, models.Model], test: Loader) -> float:
    """Flips in all, per class and their entropy for one pair at a time, nothing kept between pairs."""
    start = _now(test.device)
    for teacher, student in itertools.permutations(nets.values(), 2):
        (t, labels, _), (s, _, _) = (predict(net, test) for net in (teacher, student))
        flipped = (t.argmax(1) == labels) & (s.argmax(1) != labels)
        share = torch.bincount(labels[flipped], minlength=10) / max(1, int(flipped.sum()))
        torch.special.entr(share).sum()
    return _now(test.device) - start


def _now(device: torch.device) -> float:
    """Seconds of the device's clock: wall time where it is CUDA, else only what this process used."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _net(width: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(_Scaled(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    return net.to(device).to(memory_format=torch.channels_last)


class _Scaled(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 127.5 - 1


class _Resident:
    """One epoch of batches that lie on the device; it also holds the clock, which runs between two fetches."""

    def __init__(self, batch_size: int, device: torch.device, steps: int = 52) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch_size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (batch_size,), generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)
        self.batch = Batch(*(value.to(device) for value in (images, labels, torch.arange(batch_size))))
        self.batch_size, self.steps, self.samples, self.digest = batch_size, steps, batch_size * steps, "synthetic"
        self.device = device
        self.seconds = 0.0
        """Per step, from the second fetch to the last one, which contains one log point."""

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        for step in range(start, self.steps):
            if step == 1:
                started = _now(self.device)
            if step == self.steps - 1:
                self.seconds = (_now(self.device) - started) / (self.steps - 2)
            yield self.batch

    def close(self) -> None:
        pass


def _sgd(groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def _engine_seconds(data: _Resident, width: int, folder: Path) -> float:
    run = Run(folder, "bench", "bench", "bench", 0, data.device, Tracker.silent(), StopSignals(), folder)
    Engine({"precision": "fp32", "resume": "never"}, run).fit(Supervised(_net(width, data.device)), data, _sgd, cosine)
    return data.seconds


def _plain_seconds(data: _Resident, width: int) -> float:
    net = _net(width, data.device).train()
    matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) == side] for side in (True, False))
    optimizer = _sgd([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, data.steps)
    losses = hits = torch.zeros((), device=data.device)
    for number, batch in enumerate(data.epoch(0), 1):
        logits = net(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses = losses + loss.detach()
        hits = hits + (logits.detach().argmax(1) == batch.labels).float().mean()
        if number % 50 == 0:
            torch.stack([losses, hits]).tolist()
    return data.seconds


def main(words: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"any of: {', '.join(SECTIONS)}")
    parser.add_argument("--rows", type=Path, help="folder for the measured rows as JSON")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.sections or SECTIONS:
        rows = SECTIONS[name]()
        print(f"{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
        for row in rows:
            numbers = "ours {ours:.4g}, plain {plain:.4g} {unit}, ratio {ratio:.3f}".format(**row)
            print(f"  {row['name']}: {numbers}")
        if arguments.rows:
            arguments.rows.mkdir(parents=True, exist_ok=True)
            (arguments.rows / f"bench-{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
