"""All ordered pairs of ten networks from ten evaluations, against evaluating both networks of every pair again."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial

import torch

from benches.timing import clock, compare, now, the_device
from recombine import models
from recombine.core.types import Loader, Row
from recombine.data import open_data
from recombine.engine.class_predictions import predict_classes
from recombine.engine.evaluate import predict
from recombine.flips.comparison import Comparison, list_pairs, make_rows

__all__ = ["measure"]


def measure() -> Iterator[Row]:
    """Ten small networks with random weights on the digits' test images."""
    device = the_device()
    nodes = [{"name": "lenet5"}] * 4 + [{"name": "cnn", "widths": [8 * k, 16 * k, 16 * k, 32]} for k in (1, 1, 2, 2)]
    nodes += [{"name": "resnet8", "width": 8}] * 2
    nets = [models.build({**node, "weights": None}, classes=10, seed=seed) for seed, node in enumerate(nodes)]
    networks = {
        f"{node['name']}-{seed}": net.to(device) for seed, (node, net) in enumerate(zip(nodes, nets, strict=True))
    }
    settings = {"loader": {"kind": "device"}, "data_root": "", "seed": 0, "device": device}
    with tempfile.TemporaryDirectory() as folder:
        data = open_data({"name": "digits"}, cache_root=folder, **settings)
        test = data.loader("test", 300, train=False)
        ours, baseline = partial(_all_pairs, networks, test), partial(_pair_by_pair, networks, test)
        yield compare("10 networks, 90 pairs", ours, baseline, f"{clock(device)} for all pairs", rounds=3)
        data.close()


def _all_pairs(nets: dict[str, models.Model], test: Loader) -> float:
    start = now(test.device)
    comparison = Comparison(list(nets), [predict_classes(net, test) for net in nets.values()])
    names = [str(label) for label in range(10)]
    options = {"class_names": names, "claimed": {}, "similarity": None, "legacy": False}
    rows = make_rows(comparison, list_pairs(len(nets), "all", 0, False), {}, **options)
    assert len(rows) == 90
    return now(test.device) - start


def _pair_by_pair(nets: dict[str, models.Model], test: Loader) -> float:
    """Flips in all, per class and their entropy for one pair at a time, nothing reused between pairs."""
    start = now(test.device)
    for teacher, student in itertools.permutations(nets.values(), 2):
        (t, labels, _), (s, _, _) = (predict(net, test) for net in (teacher, student))
        flipped = (t.argmax(1) == labels) & (s.argmax(1) != labels)
        fractions = torch.bincount(labels[flipped], minlength=10) / max(1, int(flipped.sum()))
        torch.special.entr(fractions).sum()
    return now(test.device) - start
