"""What the first stage learns from, what the second matches, and the runs that choose between their ways."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from recombine import models, pnc
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.pnc import recipe
from recombine.pnc.branches import build_candidates
from recombine.pnc.clone.masks import budget_penalty, order_scores, set_keep_ratio
from recombine.pnc.clone.positions import clones_layers
from recombine.pnc.cloning import Cloning, share_scores
from recombine.pnc.importance import gradient_scores
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, View, blank, draw_vectors
from recombine.pnc.local.surrogates import LimeModels, RefittedLimeModels
from recombine.pnc.method_settings import CloningSettings
from recombine.pnc.stages import Insertion, Localization
from recombine.run.launch import check, launch
from tests.pnc.parts import SHORT, composed, launched, open_parts

NEIGHBOURHOOD = Neighbourhood(grid=2, num_fit=12, num_train=3)
ONE = {"seed": 0, "score_lr": 0.02}
FIRST = {**ONE, "steps": 10, "keep_ratio": 0.5, "anneal": True, "cloned": None}
SECOND = {**ONE, "refine": False, "match_weight": 1.0, "loc_weight": 0.0, "keep_weight": 1.0, "temperature": 2.0}


@pytest.fixture
def parts(tmp_path, weights):
    """The pair of digits networks; classes 0 and 1 are to be cloned."""
    with open_parts(tmp_path, weights) as parts:
        yield parts


def candidates(parts, **options):
    """The branches of a method."""
    return build_candidates(parts.task, CloningSettings(**options))


def test_every_position_learns_or_all_take_the_largest_ones_scores(parts):
    net = candidates(parts, surrogate="direct", per_position=False)
    largest = net.branches[0]
    before = [mask.scores.detach().clone() for branch in net.branches for mask in branch.channel_masks]
    stage = Localization(net, NEIGHBOURHOOD, None, branches=[largest], **FIRST)
    (group,) = stage.parameter_groups()
    assert {id(value) for value in group["params"]} == {id(mask.scores) for mask in largest.channel_masks}
    assert sum(parameter.requires_grad for parameter in stage.parameters()) == len(largest.channel_masks)
    for mask in largest.channel_masks:
        mask.scores.data.uniform_()
    share_scores(largest, net.branches)
    scores = {group.name: mask.scores for group, mask in zip(largest.groups, largest.channel_masks, strict=True)}
    for branch in net.branches:
        assert len(branch.groups) <= len(largest.groups)
        for group, mask in zip(branch.groups, branch.channel_masks, strict=True):
            assert torch.equal(mask.scores, scores[group.name])
    assert not torch.equal(torch.cat(before)[: len(largest.channel_masks[0].scores)], largest.channel_masks[0].scores)
    Insertion(net, NEIGHBOURHOOD, None, target_samples=0, loss="match", **SECOND)
    assert all(p.requires_grad for branch in net.branches for p in branch.adapter.parameters())
    assert not any(mask.scores.requires_grad for branch in net.branches for mask in branch.channel_masks)


def test_residual_streams_are_masked_where_the_method_says_so(parts):
    size = {"size": 16, "mean": [0.3] * 3, "std": [0.3] * 3}
    source = models.build({"name": "resnet18_cifar", "weights": None, **size}, classes=5, seed=1)
    task = replace(parts.task, source=source)
    layers = [
        {group.name for branch in build_candidates(task, method).branches for group in branch.groups}
        for method in (CloningSettings(), CloningSettings(residual="stage"))
    ]
    assert layers[0] < layers[1]


def test_images_of_other_classes_stand_beside_those_to_clone(parts):
    loader, cloned = parts.data.contrast_loader(20, parts.source)
    stored = parts.data.source.source.samples("train").labels
    batches = list(loader.epoch(0))
    for batch in batches:
        labels = [int(stored[i]) for i in batch.index]
        assert cloned == 10 and len(labels) == 20
        assert set(labels[:cloned]) <= {0, 1} and set(labels[cloned:]) <= {2, 3, 4}
    every, _ = parts.data.contrast_loader(64, parts.source, train=False)
    seen = [int(i) for batch in every.epoch(0) for i in batch.index]
    others = {i for i in parts.data.source.indices("train") if stored[i] > 1}
    assert sorted(seen) == sorted({*parts.data.split(parts.data.cloned, "train"), *others}) and len(set(seen)) == len(
        seen
    )


def test_there_must_be_others(tmp_path, weights):
    refused = pytest.raises(ConfigError, match="use_complement=true: all classes of the source are cloned")
    with open_parts(tmp_path, weights, "clone=[0,1,2,3,4]") as parts, refused:
        parts.data.contrast_loader(20, parts.source)


def test_the_first_stage_adds_what_it_loses_on_others_and_the_penalty(parts):
    net = candidates(parts, mask_kind="sigmoid")
    loader, cloned = parts.data.contrast_loader(20, parts.source)
    batch = next(loader.epoch(0))
    stage = Localization(net, NEIGHBOURHOOD, None, branches=net.branches, **{**FIRST, "cloned": cloned}).train()
    stage.after_update(6)  # 7 of 10 steps: full pressure
    step = stage(batch)
    parts = [stage.localization(batch.images[part], batch.index[part]) for part in (slice(0, 10), slice(10, 20))]
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(step.loss, sum(parts) + budget_penalty(stage.channel_masks, 0.5))
    step.loss.backward()
    assert all(mask.scores.grad.abs().sum() > 0 for mask in stage.channel_masks)
    stage.after_update(-1)
    torch.testing.assert_close(stage(batch).loss, sum(parts))


def test_a_model_fitted_anew_is_the_cached_one(parts):
    loader = parts.data.cloned_loader(16, 16, train=False)
    cached = LimeModels.fit(parts.source, loader, parts.data.outputs, NEIGHBOURHOOD, 3)
    batch = next(parts.data.cloned_loader(9, 16).epoch(0))
    anew = RefittedLimeModels(parts.source.net, torch.tensor(parts.data.outputs), NEIGHBOURHOOD, 3)
    images = parts.source.preprocess(batch.images)
    torch.testing.assert_close(anew(batch.index, View(images)), cached(batch.index), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(anew(batch.index, View(images.flip(3))), cached(batch.index), atol=1e-2)


def test_the_sources_logits_are_matched_on_images_and_two_neighbours(parts):
    net = candidates(parts)
    stage = Insertion(net, NEIGHBOURHOOD, None, target_samples=0, loss="match", **SECOND).eval()
    stage.epoch = 4
    batch = next(parts.data.joint_loader(12, parts.target)[0].epoch(0))
    images, index = batch.images[:5], batch.index[:5]
    vectors = draw_vectors((0, 4, Purpose.INSERT), index, 3, 4)
    total = torch.zeros(len(net.branches))
    with torch.no_grad():
        for k in range(5):
            for vector in vectors[k]:
                shown = [blank(m.preprocess(images[k : k + 1]), vector[None, None]) for m in (net.source, net.target)]
                goals = net.source.net(shown[0])[0, parts.data.outputs]
                for p, branch in enumerate(net.branches):
                    (*values, features, _) = net._taps[0](shown[1])
                    total[p] += ((branch(values[p], features)[0] - goals) ** 2).sum()
        torch.testing.assert_close(stage.matching(images, index), total / (5 * 3 * 2))
        whole_batch = stage(batch._replace(images=images, index=index, labels=batch.labels[:5]))
    torch.testing.assert_close(whole_batch.loss, total.sum() / 30)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_masks_are_refined_by_the_loss_of_insertion_and_by_that_of_the_first_stage_as_far_as_it_weighs(parts, weight):
    net = candidates(parts, positions=[1])
    loader, target_samples = parts.data.joint_loader(12, parts.target)
    batch = next(loader.epoch(0))
    options = {**SECOND, "refine": True, "loc_weight": weight, "target_samples": target_samples, "loss": "xe"}
    step = Insertion(net, NEIGHBOURHOOD, None, **options).train()(batch)
    step.loss.backward()
    assert all(mask.scores.grad.abs().sum() > 0 for mask in net.positions[0].channel_masks)
    assert ("localization" in step.logs) == bool(weight)


def test_losses_of_the_second_stage_add_up(parts):
    net = candidates(parts, positions=[1])
    loader, target_samples = parts.data.joint_loader(12, parts.target)
    batch = next(loader.epoch(0))
    options = {**SECOND, "match_weight": 0.3, "target_samples": target_samples}
    stages = [Insertion(net, NEIGHBOURHOOD, None, loss=loss, **options).eval() for loss in ("xe", "match", "both")]
    with torch.no_grad():
        xe, match, both = (stage(batch) for stage in stages)
    torch.testing.assert_close(both.loss, xe.loss + match.loss)


def test_filters_are_ordered_by_what_their_loss_would_do_to_the_outputs(parts):
    """Taylor scores against the derivative by multipliers that are put in the masks' place, one image at a time."""
    net = candidates(parts, positions=[1]).eval()
    (branch,), masks = net.positions, list(net.positions[0].channel_masks)
    batch = next(parts.data.cloned_loader(6, 16, train=False).epoch(0))
    images, once = batch.images, SimpleNamespace(epoch=lambda _: (batch for _ in range(1)))
    found, speaking = (gradient_scores(net, once, kind)[0] for kind in ("taylor", "relevance"))
    expected, relevance = ([torch.zeros(len(mask.scores)) for mask in masks] for _ in range(2))
    ones = [torch.ones(len(mask.scores), requires_grad=True) for mask in masks]
    for mask, one in zip(masks, ones, strict=True):
        mask.multipliers = lambda one=one: one
    for image, label in zip(parts.source.preprocess(images), batch.labels, strict=True):
        (value, *_), _ = net.forward_source(image[None])
        for k, logit in enumerate(branch.upper(value)[1][0, parts.data.outputs]):
            slopes = torch.autograd.grad(logit, ones, retain_graph=True)
            for total, own, slope in zip(expected, relevance, slopes, strict=True):
                total += slope.square()
                own += slope * (k == label)
    for ours, theirs in zip([*found, *speaking], [*expected, *relevance], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    order_scores(masks, found)
    set_keep_ratio(masks, 0.25)
    for mask, scores in zip(masks, expected, strict=True):
        assert set(mask.kept().nonzero().flatten().tolist()) == set(scores.topk(len(scores) // 4).indices.tolist())


def test_only_the_best_in_closed_form_are_trained(parts):
    cloning = Cloning(parts.task, CloningSettings(positions=[0, 1, 2], search={"train": 1}))
    before = [branch.adapter for branch in cloning.net.branches]
    states = [{k: v.clone() for k, v in adapter.state_dict().items()} for adapter in before]
    series = cloning.rank()
    place = max(range(3), key=lambda k: (series["rank_average"][k], k))
    assert series["rank_position"] == [0, 1, 2]
    assert [branch.position.number for branch in cloning.net.positions] == [place]
    chosen, probe = cloning.net.branches
    assert not clones_layers(*probe.source, probe.position)
    for branch, state in ((chosen, states[place]), (probe, states[3])):
        assert all(torch.equal(value, state[key]) for key, value in branch.adapter.state_dict().items())
    assert Cloning(parts.task, CloningSettings(positions=[1, 2])).rank() == {}


def test_a_start_by_least_squares_follows_the_sources_features(parts):
    cloning = Cloning(parts.task, CloningSettings(adapter="conv1x1_bn"))
    net = cloning.net.eval()
    images = next(parts.data.cloned_loader(64, 16, train=False).epoch(0)).images

    @torch.no_grad()
    def distances():
        values = net.forward_target(parts.target.preprocess(images))[0]
        goals = net.forward_source(parts.source.preprocess(images))[0]
        rows = zip(net.branches, values, goals, strict=True)
        return torch.stack([(b.adapter(v) - w).square().mean() / w.var() for b, v, w in rows])

    before = distances()
    cloning.start_adapters()
    assert (distances() < 0.9 * before).all() and (distances() < 0.8).all()


RUNS = {
    "together": ["mask_kind=sigmoid", "scope=global", "use_complement=true", "bn_recalibrate=true", "insert_loss=both"],
    "relevance": ["mask=relevance", "final_epochs=1", "adapter_init=lstsq", "search.train=1", "mask_input=true"],
    "once": ["mask_kind=gumbel", "mask_start=taylor", "per_position=false", "adapter_init=lstsq", "adapter=bottleneck"],
    "weights": ["granularity=weight", "mask_start=taylor", "scope=global"],
}


MORE = {
    "once": ["use_target_data=false", "lime.refit=true"],
    "together": ["lime.segment=quickshift", "lime.fill=patch_mean"],
    "weights": ["use_target_data=false", "lime.segment=quickshift", "lime.fill=zero_pixel"],
}


@pytest.mark.parametrize("name", RUNS)
def test_ways_of_cloning_run_and_their_files_say_the_same(tmp_path, weights, name):
    more = MORE.get(name, [])
    row = launched(tmp_path, weights, *SHORT, *(f"method.{option}" for option in RUNS[name]), *more)
    assert row.metrics["kept_filters"] == pytest.approx(50, abs=1) and row.metrics["logit_shift"] == 0
    (path,) = (tmp_path / "o").rglob("clone.safetensors")
    target = models.build("high", weights_root=weights)
    cloned = pnc.attach(target, path)
    assert pnc.read_cards(path)["clone"]["recalibrated"] == (name == "together")
    with open_parts(tmp_path, weights) as parts:
        _, new = parts.evaluator.predict_joint(cloned, parts.data, "test")
    right = (new.logits.argmax(1) == new.labels).double().mean() * 100
    assert float(right) == pytest.approx(row.metrics["accuracy_cloned"])


def test_modules_are_measured_by_themselves(tmp_path, weights):
    first = ["method.last_stage=localize", "method.positions=[1,2]", "method.mask=magnitude"]
    found = {}
    for recalibrated in (False, True):
        cfg = composed(tmp_path, weights, *first, f"method.bn_recalibrate={recalibrated}")
        launch(recipe, cfg)
    for row in read_rows(tmp_path / "o"):
        found[row.cell["bn_recalibrate"], row.cell["position"]] = row.metrics
        assert row.cell["last_stage"] == "localize" and row.cell["use_target_data"] == "none"
    names = {"module_accuracy", "module_false_positives", "similarity_cloned", "similarity_others", "kept_filters"}
    assert len(found) == 4 and all(names | {"module_parameters"} <= metrics.keys() for metrics in found.values())
    assert found[False, 1]["module_parameters"] > found[False, 2]["module_parameters"]
    assert found[False, 1]["similarity_cloned"] != found[True, 1]["similarity_cloned"]
    assert not list((tmp_path / "o").rglob("clone.safetensors"))


def test_options_are_checked_together(tmp_path, weights):
    wrong = ["mask_kind=hard", "scope=all", "adapter_init=zero", "insert_loss=mse", "match_weight=-1"]
    wrong += ["anneal=often", "last_stage=none", "mask=random", "use_complement=true"]
    cfg = composed(tmp_path, weights, *(f"method.{option}" for option in wrong), "lime.refit=always")
    problems = "\n".join(check(recipe, cfg))
    for words in (
        "method.mask_kind=hard: one of topk_ste, sigmoid, gumbel is needed, such as method.mask_kind=topk_ste",
        "method.scope=all: one of layer, global",
        "method.adapter_init=zero: one of identity, lstsq",
        "method.insert_loss=mse: one of xe, match, both, or null",
        "method.match_weight=-1: a number of at least 0",
        "method.anneal=often: true or false",
        "method.last_stage=none: one of localize, insert",
        "method.use_complement=true needs method.mask=learned, but it is random",
        "lime.refit=always: true or false",
    ):
        assert words in problems
    nothing = composed(tmp_path, weights, "method.adapter=none", "method.adapter_init=lstsq")
    assert any("nothing to start with" in text for text in check(recipe, nothing))
