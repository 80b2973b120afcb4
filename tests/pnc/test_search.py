"""Candidate positions of a pair, how they are scored and which one is chosen."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recombine.core.errors import ConfigError
from recombine.models.cuts import cuts
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import find_positions, list_cuts
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, blank, draw_vectors, fit_ridge
from recombine.pnc.method_settings import PositionSearchSettings
from recombine.pnc.search import joint_similarities, select_position
from recombine.pnc.settings import SimilaritySettings
from tests.pnc.test_clone import NAMES, branch_of, graph, network

VALUES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=7)


@given(VALUES)
def test_the_best_of_all_and_of_equals_the_last(values):
    best = select_position(values)
    assert values[best] == max(values) and max(values) not in values[best + 1 :]


def test_settings_of_the_search_are_checked_together():
    with pytest.raises(ConfigError) as error:
        PositionSearchSettings.of({"train": 0, "metric": "loss"}, "method.search")
    words = "\n".join(error.value.problems)
    assert "method.search.metric=loss: one of average, similarity is needed" in words
    assert "method.search.train=0: a whole number of at least 1, or null is needed" in words


def test_all_pairs_of_cuts_are_those_of_one_kind():
    target, source = graph(network("resnet20", 3)), graph(network("lenet5", 5, seed=1))
    there = find_positions(target, source, "all")
    own, others = cuts(target), cuts(source)
    pairs = [(a.name, b.name) for a, b in itertools.product(own, others) if len(a.shape) == len(b.shape)]
    assert [(p.target.name, p.source.name) for p in there[1:]] == pairs
    assert there[0].number == there[0].source_number == 0
    assert all(list_cuts(target)[p.number] is not None and others[p.source_number - 1] == p.source for p in there[1:])
    assert set(find_positions(target, source)) <= set(there)
    assert len({position.label for position in there}) == len(there)


def test_the_whole_source_on_the_targets_features():
    target, source = network("resnet20", 3), network("cnn", 5, seed=1)
    there = find_positions(graph(target), graph(source), "whole")
    assert [p.source_number for p in there] == [0] * 5 and there[-1].target.name == "layer3"
    branch = branch_of(target, source, 2, keep=0.5, align="whole")
    assert branch.adapter[0].weight.shape[:2] == (3, 16) and branch.position.label == "R2-0"
    layers = {name for name, module in source.net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {group.name for group in branch.groups} == layers


@pytest.mark.parametrize("head", ["rows", "scale", "concat"])
def test_nothing_shared_without_adapter_is_the_direct_ensemble(head):
    """R = 0, all filters on."""
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    target, source = network("lenet5", 3), network("resnet20", 5, seed=1)
    branch = branch_of(target, source, 0, adapter="none", head=head)
    cloned = ClonedNetwork(target, NAMES).attach(Clone(branch, ["car", "van"]), "clone")
    torch.testing.assert_close(cloned(images), torch.cat([target(images), source(images)[:, [1, 3]]], 1))


def test_similarity_of_a_candidate_by_hand(digits, build):
    """Eq. (8) of each candidate alone, from the plain networks, one image at a time; outputs as probabilities."""
    target, source = build(0, 4), build(1, 5)
    branches = [branch_of(target, source, number, keep=0.5) for number in (1, 2)]
    net = Candidates(target, source, (graph(target), graph(source)), branches).eval()
    neighbourhood = Neighbourhood(grid=2, num_fit=12, output="prob")
    batch = next(digits.loader("train", 3, train=False, indices=[5, 70, 300]).epoch(0))
    evaluator = CloneEvaluator(16, 8, "fp32", None, 7, neighbourhood, SimilaritySettings(images=3, vectors=14))
    found = joint_similarities(net, [1, 3], batch, batch, evaluator)
    for k, branch in enumerate(branches):
        cloned = ClonedNetwork(target, ["a"] * 4).attach(Clone(branch, ["x", "y"]), "c")
        thetas = {name: [] for name in ("module", "new", "target", "old")}
        for image, index in zip(batch.images, batch.index, strict=True):
            vectors = draw_vectors((7, 0, Purpose.SIMILARITY), index[None], 14, 4)
            with torch.no_grad():
                inside = blank(target.preprocess(image[None]), vectors)
                values, _ = net.forward_source(blank(source.preprocess(image[None]), vectors))
                logits = {"module": branch.upper(values[k])[1], "target": target.net(inside)}
                *value, features, own = cloned._taps[0](inside)
                joined = torch.cat([own, cloned.clones["c"](value[0], features)], 1)
            logits |= {"new": joined, "old": joined}
            columns = {"module": [1, 3], "new": [4, 5], "target": range(4), "old": range(4)}
            for name, value in logits.items():
                probabilities = value.softmax(1)[None, :, list(columns[name])]
                thetas[name].append(
                    fit_ridge(vectors, neighbourhood.weights(vectors), probabilities, neighbourhood.alpha)[
                        0, :-1
                    ].flatten()
                )
        flat = {name: torch.cat(parts) for name, parts in thetas.items()}
        cosines = [torch.cosine_similarity(flat[a], flat[b], 0) for a, b in (("module", "new"), ("target", "old"))]
        assert found[k] == pytest.approx(float(sum(cosines)), abs=1e-5)
        cloned.restore()
    assert abs(found[0] - found[1]) > 1e-3
