"""Budgets, kinds of masks and their end in one and the same hard mask; statistics of a module's own."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recombine import models as zoo
from recombine import pnc
from recombine.core.types import Batch
from recombine.models.freeze import digest
from recombine.models.graph import traced
from recombine.pnc.clone import serialization
from recombine.pnc.clone.batchnorm import find_batchnorms, recalibrate
from recombine.pnc.clone.branch import Branch, find_linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.masks import (
    MASK_KINDS,
    ChannelMask,
    anneal_keep_ratio,
    budget_penalty,
    harden,
    ramp,
    set_keep_ratio,
    share_budget,
)
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import find_positions

SETTINGS = {"size": 32, "mean": [0.4] * 3, "std": [0.3] * 3, "weights": None, "classes": 5}


def network(name, seed=0):
    """A network of the zoo with random weights, and BatchNorm statistics that are not those of a fresh one."""
    model = zoo.build({"name": name, **SETTINGS}, classes=5, seed=seed).eval()
    for module in find_batchnorms(model):
        module.running_mean.uniform_(-0.2, 0.2)
        module.running_var.uniform_(0.5, 1.5)
    return model


@cache
def double(name):
    """The traced network in float64."""
    return traced(network(name).double())


def masks_of(*channels):
    channel_masks = [ChannelMask(count).train() for count in channels]
    for mask in channel_masks:
        mask.scores.data = torch.randn(len(mask.scores))
    return channel_masks


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), keep=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_a_common_budget_takes_the_best_of_all_layers_and_one_of_each(sizes, keep, seed):
    torch.manual_seed(seed)
    channel_masks = masks_of(*sizes)
    share_budget(channel_masks)
    set_keep_ratio(channel_masks, keep)
    kept = torch.cat([mask.kept() for mask in channel_masks])
    count = max(len(sizes), round(float(channel_masks[0].keep * sum(sizes))))
    best = [(k, int(mask.scores.argmax())) for k, mask in enumerate(channel_masks)]
    others = [(k, i) for k, size in enumerate(sizes) for i in range(size) if (k, i) not in best]
    others.sort(key=lambda place: -channel_masks[place[0]].scores[place[1]].item())
    wanted = {*best, *others[: count - len(best)]}
    places = [(k, i) for k, size in enumerate(sizes) for i in range(size)]
    assert {place for place, on in zip(places, kept.tolist(), strict=True) if on} == wanted


def test_a_sigmoid_mask_fades_channels():
    (mask,) = masks_of(4)
    mask.set_kind("sigmoid")
    torch.testing.assert_close(mask.multipliers(), mask.scores.sigmoid())
    mask.multipliers().sum().backward()
    share = mask.scores.detach().sigmoid()
    torch.testing.assert_close(mask.scores.grad, share * (1 - share))
    fresh = ChannelMask(1000)
    fresh.set_kind("sigmoid")
    assert fresh.multipliers().detach().min() > 0.95  # nearly all on at the start


def test_a_gumbel_mask_is_on_with_the_probability_of_its_score():
    (mask,) = masks_of(5)
    mask.set_kind("gumbel")
    draws = torch.stack([mask.multipliers().detach() for _ in range(2000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    share = mask.scores.detach().sigmoid()
    spread = (share * (1 - share) / 2000).sqrt()
    assert ((draws.mean(0) - share).abs() < 4.5 * spread).all()
    torch.manual_seed(7)
    mask.multipliers().sum().backward()
    torch.manual_seed(7)
    uniform = torch.rand(5)
    soft = ((mask.scores.detach() + uniform.log() - (1 - uniform).log()) * 1.5).sigmoid()
    torch.testing.assert_close(mask.scores.grad, soft * (1 - soft) * 1.5)


def test_the_penalty_by_hand():
    """Scores whose sigmoids are 0.8 and 0.5, or 0.2: over a budget of 0.25 by 0.4 and not at all; together by 0.25."""
    channel_masks = [ChannelMask(2), ChannelMask(1)]
    channel_masks[0].scores.data = torch.tensor([math.log(4), 0.0])
    channel_masks[1].scores.data = torch.tensor([-math.log(4)])
    uncertain = 2 * ((0.16 + 0.25) / 2 + 0.16)
    torch.testing.assert_close(budget_penalty(channel_masks, 0.25), torch.tensor(30 * 0.4 + uncertain))
    share_budget(channel_masks)
    torch.testing.assert_close(budget_penalty(channel_masks, 0.25), torch.tensor(2 * 30 * 0.25 + uncertain))


def test_pressure_rises_while_the_budget_falls():
    assert [ramp(step, 100) for step in (0, 35, 70, 99)] == [0, 0.5, 1, 1] and anneal_keep_ratio(70, 100, 0.3) == 0.3


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize(("name", "scope"), [("cnn", "layer"), ("cnn", "global"), ("mobilenetv2_cifar", "global")])
def test_however_it_was_learned_the_masked_source_is_the_extracted_one(name, kind, scope):
    graph = double(name)
    there = find_positions(graph, graph)[1]
    branch = Branch(there, graph, [1, 3], find_linear_head(graph), adapter="none", head="concat").double()
    if scope == "global":
        share_budget(branch.channel_masks)
    value = torch.randn(2, *there.source.shape, dtype=torch.float64)
    whole = branch.eval().upper(value)[1]
    for mask in branch.train().channel_masks:
        mask.set_kind(kind)
        mask.scores.data += torch.randn(len(mask.scores))
    set_keep_ratio(branch.channel_masks, 0.5)
    learning = branch.upper(value)[1]
    assert learning.requires_grad and not torch.allclose(learning, whole)
    harden(branch.channel_masks, 0.5)
    kept = torch.cat(branch.kept_channels()).sum() / sum(map(len, branch.kept_channels()))
    assert float(kept) == pytest.approx(0.5, abs=0.05)
    with torch.no_grad():
        masked, trained = branch.upper(value)[1], branch.eval().upper(value)[1]
        assert torch.equal(masked, trained)
        torch.testing.assert_close(Clone(branch, ["a", "b"]).module(value)[1], masked, rtol=0, atol=1e-10)


def weighed(name, keep=0.5, **kinds):
    """A branch in float64 with random scores, at the second position, and a value that enters it."""
    graph = double(name)
    there = find_positions(graph, graph)[1]
    kinds = {"adapter": "conv1x1_bn", "head": "concat", **kinds}
    branch = Branch(there, graph, [1, 3], find_linear_head(graph), **kinds).double().eval()
    for mask in branch.channel_masks:
        mask.scores.data.uniform_()
    set_keep_ratio(branch.channel_masks, keep)
    return branch, torch.randn(2, *there.source.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", ["cnn", "resnet20", "mobilenetv2_cifar"])
def test_single_weights_go_in_every_layer_above_the_cut(name):
    """Masked in place, and by weights that are zero: the same; what is masked has no effect and is not counted."""
    branch, value = weighed(name, granularity="weight")
    (source,), whole = branch.source, dict(double(name).net.named_parameters())
    masks = dict(zip((f"{group.name}.weight" for group in branch.groups), branch.kept_channels(), strict=True))
    assert all(abs(int(mask.sum()) - len(mask) / 2) <= 1 for mask in masks.values())
    with torch.no_grad():
        clone = Clone(branch, ["a", "b"])
        torch.testing.assert_close(clone.module(value)[1], branch.upper(value)[1], rtol=0, atol=1e-10)
        for key, zeroed in clone.module.named_parameters():
            kept = masks.get(key, torch.ones(zeroed.numel(), dtype=torch.bool)).view_as(zeroed)
            assert torch.equal(zeroed, whole[key] * kept)
    kernels = {
        key for key, each in clone.module.named_parameters() if each.ndim > 1 and not key.startswith(source.head)
    }
    assert masks.keys() == kernels
    removed = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(each.numel() for each in clone.module.parameters())
    assert removed and clone.count_parameters()["module_parameters"] == total - removed
    set_keep_ratio(branch.channel_masks, 1.0)
    with torch.no_grad():
        assert torch.equal(branch.upper(value)[1], weighed(name, keep=1.0)[0].upper(value)[1])
    branch.upper(value)[1].sum().backward()
    assert all(mask.scores.grad.count_nonzero() for mask in branch.channel_masks)


@pytest.mark.parametrize(("name", "adapter"), [("cnn", "conv1x1_bn"), ("cnn", "bottleneck"), ("lenet5", "conv1x1")])
def test_channels_at_the_entry_go_with_outputs_of_the_adapter(name, adapter):
    branch, value = weighed(name, mask_input=True, adapter=adapter)
    kept = branch.channel_masks[0].kept()
    assert branch.groups[0].name == "input" and 0 < int(kept.sum()) < len(kept) == value.shape[1]
    with torch.no_grad():
        changed = value + 9 * torch.randn_like(value) * ~kept.view(-1, 1, 1)
        assert torch.equal(branch.upper(changed)[1], branch.upper(value)[1])
        seen = torch.randn(2, *branch.position.target.shape, dtype=torch.float64)
        clone = Clone(branch, ["a", "b"])
        assert clone.adapter(seen).shape[1] == int(kept.sum())
        found = clone(seen, torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(found, branch(seen, None).float(), rtol=1e-5, atol=1e-5)


def test_where_a_sum_reads_what_enters_all_channels_stay():
    assert weighed("resnet20", mask_input=True)[0].input is None
    assert weighed("resnet20", mask_input=True)[0].groups == weighed("resnet20")[0].groups


class Batches:
    """The same three batches in every epoch."""

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (3, 8, 3, 32, 32), generator=draw).to(torch.uint8)
        self.batches = [Batch(batch, torch.zeros(8), torch.arange(8)) for batch in images]

    def epoch(self, epoch):
        yield from self.batches


@pytest.fixture
def recalibrated():
    """A pair of networks joined, with statistics of the branch's own, and what its BatchNorms saw meanwhile."""
    target, source = network("lenet5"), network("cnn", seed=1)
    before = digest(source)
    host, graph = traced(target), traced(source)
    kinds = {"adapter": "conv1x1_bn", "head": "rows", "recalibrated": True}
    branch = Branch(find_positions(host, graph)[0], graph, [1, 3], find_linear_head(host), **kinds)
    for mask in branch.channel_masks:
        mask.scores.data.uniform_()
    set_keep_ratio(branch.channel_masks, 0.5)
    net = Candidates(target, source, (host, graph), [branch]).eval()
    seen = [[] for _ in branch.batchnorms()]
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
        for norm, kept in zip(branch.batchnorms(), seen, strict=True)
    ]
    recalibrate(branch.batchnorms(), lambda images: net.forward_modules(source.preprocess(images)), Batches())
    for hook in hooks:
        hook.remove()
    assert digest(source) == before
    return target, source, net, seen


def test_statistics_are_those_of_what_the_masked_layers_see(recalibrated):
    _, source, net, seen = recalibrated
    (branch,) = net.branches
    assert len(branch.batchnorms()) >= 1 and not any(norm.training for norm in branch.batchnorms())
    for norm, inputs in zip(branch.batchnorms(), seen, strict=True):
        assert len(inputs) == 3 and norm.momentum == 0.1
        axes = [k for k in range(inputs[0].ndim) if k != 1]
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(axes) for x in inputs]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([x.var(axes) for x in inputs]).mean(0))
    own, theirs = (dict(model.named_parameters()) for model in (branch.source[0].net, source.net))
    assert own.keys() == theirs.keys() and all(own[key] is theirs[key] for key in own)


@pytest.mark.parametrize("reference", [False, True])
def test_a_file_keeps_the_modules_own_statistics(tmp_path, recalibrated, reference):
    target, source, net, _ = recalibrated
    images = Batches().batches[0].images
    clone = Clone(net.branches[0], ["car", "van"])
    expected = ClonedNetwork(target).attach(clone, "clone")(images)
    torch.testing.assert_close(expected, net(images)[:, 0].detach(), rtol=1e-4, atol=1e-4)
    path = serialization.save_clone(
        clone, tmp_path / "c.safetensors", name="c", target=target, source=source, reference=reference
    )
    again = pnc.attach(target, path, sources=[source] if reference else [])
    assert torch.equal(again(images), expected) and pnc.read_cards(path)["c"]["recalibrated"]
