"""Masks and losses against their equations by hand, and the paper's methods as points of their combinations."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from digits import compose_config, run_rows
from scipy.stats import entropy, pearsonr
from torch.nn import functional as F

from recombine.core.settings import schema_of
from recombine.run.config import build
from recombine.transfer import recipe
from recombine.transfer.composed import ComposedDistillation, fit_temperature
from recombine.transfer.data_partition import DataPartition
from recombine.transfer.distillation import Distillation, SelfDistillation
from recombine.transfer.losses import DIST, DKD, KL
from recombine.transfer.masks import All, Confidence, FlipMask, mix
from recombine.transfer.teacher_cache import FrozenTeachers

CONFIG = Path(__file__).parents[2] / "config" / "transfer"
LABELS = torch.tensor([0, 2, 1, 3])


@pytest.fixture
def logits():
    """Student, initial student and two teachers: [4, 5] each."""
    return [2 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def named(group, name):
    """An option of a group, built."""
    node = yaml.safe_load((CONFIG / group / f"{name}.yaml").read_text())
    assert node["name"] == name and schema_of(node["_target_"]) is not None
    return build(node)


@pytest.mark.parametrize("option", sorted((CONFIG / "mask").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_mask_gives_each_sample_to_somebody_or_nobody(option, logits):
    student, *candidates = logits
    weights = named("mask", option.stem)(student, candidates, LABELS)
    assert weights.shape == (3, 4) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(4))


def test_confidence_is_by_label_class_or_entropy(logits):
    student, *candidates = logits
    p = torch.stack([each.softmax(1) for each in candidates]).double().numpy()
    by_hand = {
        "label": p[:, range(4), LABELS].argmax(0),
        "maximum": p.max(2).argmax(0),
        "entropy": entropy(p, axis=2).argmin(0),
    }
    for by, expected in by_hand.items():
        mask = Confidence("", by)
        assert mask(student, candidates, LABELS).argmax(0).tolist() == expected.tolist()
        assert mask.reads_labels == (by == "label")
    tie = Confidence("", "maximum")(student, [candidates[0], candidates[0]], None)
    assert tie[0].tolist() == [1] * 4, "ties go to the initial student"
    soft = Confidence("", "label", softness=0.5)(student, candidates, LABELS)
    confidence = p[:, range(4), LABELS] ** 2
    np.testing.assert_allclose(soft, confidence / confidence.sum(0), rtol=1e-5)


def test_calibrated_confidence_is_at_each_networks_temperature(logits):
    student, *candidates = logits
    mask = Confidence("", "maximum", calibrated=True)
    mask.calibrate([1.0, 10.0, 1.0])
    expected = torch.stack([z.div(t).softmax(1).amax(1) for z, t in zip(candidates, (1, 10, 1), strict=True)])
    assert torch.equal(mask(student, candidates, None).argmax(0), expected.argmax(0))


def test_the_fitted_temperature_is_the_best_of_a_grid():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (500,), generator=random)
    logits = 4 * F.one_hot(labels, 6) + 5 * torch.randn(500, 6, generator=random)
    grid = np.geomspace(0.1, 15, 400)
    losses = [float(F.cross_entropy(logits / t, labels)) for t in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=0.02)


def test_a_mixture_is_of_probabilities(logits):
    candidates, weights = logits[:2], torch.tensor([[1.0, 0.25, 0.0, 0.5], [0.0, 0.75, 1.0, 0.5]])
    target = mix(candidates, weights)
    assert torch.equal(target[0], candidates[0][0]) and torch.equal(target[2], candidates[1][2]), "nothing is rounded"
    p, q = (each.softmax(1) for each in candidates)
    torch.testing.assert_close(target.softmax(1), weights[0, :, None] * p + weights[1, :, None] * q)


def test_dkd_is_its_two_parts_by_hand(logits):
    student, target, *_ = logits
    found = DKD("", alpha=1.5, beta=4.0, temperature=2.0)(student, target, LABELS)
    for place, label in enumerate(LABELS):
        p, q = ((z[place] / 2).softmax(0).double().numpy() for z in (target, student))
        pair = entropy([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = entropy(np.delete(p, label), np.delete(q, label))
        assert float(found[place]) == pytest.approx(4 * (1.5 * pair + 4 * others), rel=1e-4)


def test_dkd_with_the_authors_weight_is_kl(logits):
    """KL = KL(b_t || b_s) + (1 - p_y) KL(q_t || q_s), equation 7 of the paper."""
    student, target, *_ = logits
    rest = 1 - target.softmax(1)[range(4), LABELS]
    parts = DKD("", alpha=1, beta=0)(student, target, LABELS) + rest * DKD("", alpha=0, beta=1)(student, target, LABELS)
    torch.testing.assert_close(parts, KL("")(student, target, None))


def test_dist_is_scipys_correlations(logits):
    student, target, *_ = logits
    p, q = ((z / 3).softmax(1).double().numpy() for z in (student, target))
    rows = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    found = DIST("", beta=2.0, gamma=0.5, temperature=3.0)(student, target, None).mean()
    assert float(found) == pytest.approx(9 * (2 * rows + 0.5 * columns), rel=1e-4)


def test_standardised_logits_forget_shift_and_scale(logits):
    student, target, *_ = logits
    loss = KL("", temperature=2.0, standardized=True)
    torch.testing.assert_close(loss(3 * student + 1, target, None), loss(student, target, None))
    z, t = (scipy_standardised(each) for each in (student, target))
    by_hand = 4 * entropy((t / 2).softmax(1), (z / 2).softmax(1), axis=1)
    np.testing.assert_allclose(loss(student, target, None), by_hand, rtol=1e-4)


def scipy_standardised(logits):
    values = logits.numpy()
    return torch.from_numpy((values - values.mean(1, keepdims=True)) / values.std(1, ddof=1, keepdims=True))


@pytest.mark.parametrize("point", ["kl_dp", "kl_dp_u", "kl", "self_dist", "kl_positive", "kl_not_negative"])
def test_the_papers_methods_are_points(networks, batch, point):
    student, initial, (teacher, _) = networks
    frozen, start = FrozenTeachers([teacher]), FrozenTeachers([initial])
    masks = {
        "kl_dp": Confidence("", "label"),
        "kl_dp_u": Confidence("", "maximum"),
        "kl": All(""),
        "self_dist": All("", "initial"),
        "kl_positive": FlipMask("", "positive_only"),
        "kl_not_negative": FlipMask("", "not_negative"),
    }
    published = {
        "kl_dp": lambda: DataPartition(student, frozen, start, name=""),
        "kl_dp_u": lambda: DataPartition(student, frozen, start, name="", supervised=False),
        "kl": lambda: Distillation(student, frozen, name="", kl_weight=1.0),
        "self_dist": lambda: SelfDistillation(student, start, name=""),
        "kl_positive": lambda: Distillation(student, frozen, name="", kl_weight=1.0, kl_samples="positive"),
        "kl_not_negative": lambda: Distillation(student, frozen, name="", kl_weight=1.0, kl_samples="not_negative"),
    }
    composed = ComposedDistillation(student, frozen, start, name="", mask=masks[point], loss=KL("")).train()
    ours, theirs = composed(batch), published[point]().train()(batch)
    torch.testing.assert_close(ours.loss, theirs.loss)
    if "to_teacher" in theirs.logs:
        torch.testing.assert_close(ours.logs["to_teacher"], theirs.logs["to_teacher"])


def test_groups_compose_on_the_command_line(folder):
    small = ["method=distill", "mask=dp_calibrated", "loss=dkd", "engine.max_steps=2", "method.loss.beta=2"]
    cfg = compose_config(folder, *small)
    assert (cfg.method.name, cfg.method.loss.beta) == ("dp_calibrated-dkd", 2)
    (row,) = run_rows(recipe, cfg)
    assert row.status == "ok" and row.cell["method"] == "dp_calibrated-dkd" and row.metrics["steps"] == 2
