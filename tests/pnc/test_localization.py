"""What the first stage learns from, what the second matches, and the runs that choose between their ways."""

from __future__ import annotations

import pytest
import torch

from recombine import models, pnc
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.pnc import cloning, recipe
from recombine.pnc.clone.masks import budget_penalty
from recombine.pnc.cloning import Cloning, candidates
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, blank, presence
from recombine.pnc.local.surrogates import LimeModels, Refitted
from recombine.pnc.localization import hand_on
from recombine.pnc.training import Insertion, Localization
from recombine.run.config import build
from recombine.run.launch import check, launch
from tests.pnc import test_pnc as whole

NEAR = Neighbourhood(grid=2, num_fit=12, num_train=3)
ONE = {"seed": 0, "score_lr": 0.02}
FIRST = {**ONE, "steps": 10, "keep_ratio": 0.5, "anneal": True, "cloned": None}
SECOND = {**ONE, "match_weight": 1.0, "loc_weight": 0.0, "keep_weight": 1.0, "temperature": 2.0}


@pytest.fixture
def bench(tmp_path, weights):
    """The pair of digits networks; classes 0 and 1 are to be cloned."""
    bench = whole.bench_of(tmp_path, weights)
    yield bench
    bench.close()


def test_every_position_learns_or_all_take_the_largest_ones_scores(bench):
    method = Cloning(localize_epochs=1, min_steps=2, surrogate="direct", per_position=False)
    net = candidates(bench, method)
    largest = net.branches[0]
    before = [gate.scores.detach().clone() for branch in net.branches for gate in branch.gates]
    stage = Localization(net, NEAR, None, branches=[largest], **FIRST)
    (group,) = stage.parameter_groups()
    assert {id(value) for value in group["params"]} == {id(gate.scores) for gate in largest.gates}
    assert sum(parameter.requires_grad for parameter in stage.parameters()) == len(largest.gates)
    for gate in largest.gates:
        gate.scores.data.uniform_()
    hand_on(largest, net.branches)
    scores = {group.name: gate.scores for group, gate in zip(largest.groups, largest.gates, strict=True)}
    for branch in net.branches:
        assert len(branch.groups) <= len(largest.groups)
        for group, gate in zip(branch.groups, branch.gates, strict=True):
            assert torch.equal(gate.scores, scores[group.name])
    assert not torch.equal(torch.cat(before)[: len(largest.gates[0].scores)], largest.gates[0].scores)
    Insertion(net, NEAR, None, originals=0, loss="match", **SECOND)
    assert all(p.requires_grad for branch in net.branches for p in branch.adapter.parameters())
    assert not any(gate.scores.requires_grad for branch in net.branches for gate in branch.gates)


def test_images_of_other_classes_stand_beside_those_to_clone(bench):
    loader, cloned = bench.contrast_loader(20)
    stored = bench.source_data.source.samples("train").labels
    batches = list(loader.epoch(0))
    for batch in batches:
        labels = [int(stored[i]) for i in batch.index]
        assert cloned == 10 and len(labels) == 20
        assert set(labels[:cloned]) <= {0, 1} and set(labels[cloned:]) <= {2, 3, 4}
    every, _ = bench.contrast_loader(64, train=False)
    seen = [int(i) for batch in every.epoch(0) for i in batch.index]
    others = {i for i in bench.source_data.indices("train") if stored[i] > 1}
    assert sorted(seen) == sorted({*bench.part(bench.cloned, "train"), *others}) and len(set(seen)) == len(seen)


def test_there_must_be_others(tmp_path, weights):
    bench = whole.bench_of(tmp_path, weights, "clone=[0,1,2,3,4]")
    with pytest.raises(ConfigError, match="use_complement=true: all classes of the source are cloned"):
        bench.contrast_loader(20)
    bench.close()


def test_the_first_stage_adds_what_it_loses_on_others_and_the_penalty(bench):
    net = candidates(bench, Cloning(mask_kind="sigmoid"))
    loader, cloned = bench.contrast_loader(20)
    batch = next(loader.epoch(0))
    stage = Localization(net, NEAR, None, branches=net.branches, **{**FIRST, "cloned": cloned}).train()
    stage.after_update(6)  # 7 of 10 steps: full pressure
    step = stage(batch)
    parts = [stage.localization(batch.images[part], batch.index[part]) for part in (slice(0, 10), slice(10, 20))]
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(step.loss, sum(parts) + budget_penalty(stage.gates, 0.5))
    step.loss.backward()
    assert all(gate.scores.grad.abs().sum() > 0 for gate in stage.gates)
    stage.after_update(-1)
    torch.testing.assert_close(stage(batch).loss, sum(parts))


def test_a_model_fitted_anew_is_the_remembered_one(bench):
    cached = LimeModels.fit(bench.source, bench.clone_loader(16, train=False), bench.outputs, NEAR, 3)
    batch = next(bench.clone_loader(9).epoch(0))
    anew = Refitted(bench.source.net, torch.tensor(bench.outputs), NEAR, 3)
    images = bench.source.preprocess(batch.images)
    torch.testing.assert_close(anew(batch.index, images), cached(batch.index, images), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(anew(batch.index, images.flip(3)), cached(batch.index), atol=1e-2)


def test_the_sources_logits_are_matched_on_images_and_two_neighbours(bench):
    net = candidates(bench, Cloning())
    stage = Insertion(net, NEAR, None, originals=0, loss="match", **SECOND).eval()
    stage.epoch = 4
    batch = next(bench.joint_loader(12)[0].epoch(0))
    images, index = batch.images[:5], batch.index[:5]
    vectors = presence((0, 4, Purpose.INSERT), index, 3, 4)
    total = torch.zeros(len(net.branches))
    with torch.no_grad():
        for k in range(5):
            for vector in vectors[k]:
                shown = [blank(m.preprocess(images[k : k + 1]), vector[None, None]) for m in (net.source, net.target)]
                wanted = net.source.net(shown[0])[0, bench.outputs]
                for p, branch in enumerate(net.branches):
                    (*values, features, _) = net._taps[0](shown[1])
                    total[p] += ((branch(values[p], features)[0] - wanted) ** 2).sum()
        torch.testing.assert_close(stage.matched(images, index), total / (5 * 3 * 2))
        whole_batch = stage(batch._replace(images=images, index=index, labels=batch.labels[:5]))
    torch.testing.assert_close(whole_batch.loss, total.sum() / 30)


def test_losses_of_the_second_stage_add_up(bench):
    net = candidates(bench, Cloning(positions=[1]))
    loader, originals = bench.joint_loader(12)
    batch = next(loader.epoch(0))
    with torch.no_grad():
        xe, match, both = (
            Insertion(net, NEAR, None, originals=originals, loss=loss, **{**SECOND, "match_weight": 0.3}).eval()(batch)
            for loss in ("xe", "match", "both")
        )
    torch.testing.assert_close(both.loss, xe.loss + match.loss)


def test_a_start_by_least_squares_follows_the_sources_features(bench):
    net = candidates(bench, Cloning(adapter_init="lstsq", adapter="conv1x1_bn")).eval()
    images = next(bench.clone_loader(64, train=False).epoch(0)).images

    @torch.no_grad()
    def distances():
        values = net.of_target(bench.target.preprocess(images))[0]
        wanted = net.of_source(bench.source.preprocess(images))[0]
        rows = zip(net.branches, values, wanted, strict=True)
        return torch.stack([(b.adapter(v) - w).square().mean() / w.var() for b, v, w in rows])

    before = distances()
    cloning.start_adapters(bench, net)
    assert (distances() < 0.9 * before).all() and (distances() < 0.8).all()


RUNS = {
    "together": ["mask_kind=sigmoid", "scope=global", "use_complement=true", "bn_recalibrate=true", "insert_loss=both"],
    "once": ["mask_kind=gumbel", "per_position=false", "adapter_init=lstsq", "adapter=bottleneck"],
}


@pytest.mark.parametrize("name", RUNS)
def test_ways_of_cloning_run_and_their_files_say_the_same(tmp_path, weights, name):
    more = ["use_target_data=false", "lime.refit=true"] if name == "once" else []
    row = whole.launched(tmp_path, weights, *whole.SHORT, *(f"method.{option}" for option in RUNS[name]), *more)
    assert row.metrics["kept_filters"] == pytest.approx(50, abs=1) and row.metrics["logit_shift"] == 0
    (path,) = (tmp_path / "o").rglob("clone.safetensors")
    target = models.build("high", weights_root=weights)
    cloned = pnc.attach(target, path)
    assert pnc.cards(path)["clone"]["recalibrated"] == (name == "together")
    bench = whole.bench_of(tmp_path, weights)
    _, new = bench.said(cloned, "test")
    bench.close()
    right = (new.logits.argmax(1) == new.labels).double().mean() * 100
    assert float(right) == pytest.approx(row.metrics["accuracy_cloned"])


def test_modules_are_measured_by_themselves(tmp_path, weights):
    first = ["method.last_stage=localize", "method.positions=[1,2]", "method.mask=magnitude"]
    found = {}
    for recalibrated in (False, True):
        cfg = whole.composed(tmp_path, weights, *first, f"method.bn_recalibrate={recalibrated}")
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
    cfg = whole.composed(tmp_path, weights, *(f"method.{option}" for option in wrong), "lime.refit=always")
    problems = "\n".join(check(recipe, cfg))
    for words in (
        "method.mask_kind=hard: one of topk_ste, sigmoid, gumbel",
        "method.scope=all: one of layer, global",
        "method.adapter_init=zero: one of identity, lstsq",
        "method.insert_loss=mse: one of null, xe, match, both",
        "method.match_weight=-1: a number of at least 0",
        "method.anneal=often: true or false",
        "method.last_stage=none: one of localize, insert",
        "method.use_complement=True needs method.mask=learned, but it is random",
        "lime.refit='always': one of True, False",
    ):
        assert words in problems
    with pytest.raises(ConfigError, match="nothing to start with"):
        build(whole.composed(tmp_path, weights, "method.adapter=none", "method.adapter_init=lstsq").method)
