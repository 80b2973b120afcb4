"""CD and CRD: their losses by loops, their memory, the precision they compare in."""

import math
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from recombine.core.types import Batch
from recombine.transfer.contrastive import ContrastiveMemory, ContrastiveSamples, CosineDistillation, similarity_loss
from recombine.transfer.teacher_cache import FrozenTeachers


def test_similarity_of_features_by_loop(networks, batch):
    student, _, (teacher, _) = networks
    features, logits = student.features_and_logits(batch.images[:9])
    torch.testing.assert_close(features, student.features(batch.images[:9]))
    torch.testing.assert_close(logits, student(batch.images[:9]))
    target_features = teacher.features(batch.images[:9])
    total = 0.0
    for i in range(9):
        rows = [
            torch.stack([F.cosine_similarity(f[i], f[j], dim=0) for j in range(9)]) for f in (features, target_features)
        ]
        total = total + F.kl_div(rows[0].log_softmax(0), rows[1].softmax(0), reduction="sum")
    torch.testing.assert_close(similarity_loss(features, target_features), total, rtol=1e-4, atol=1e-6)


def test_memory_draws_other_classes_and_remembers():
    samples = ContrastiveSamples(torch.arange(0, 80, 2), torch.arange(40) % 4)
    memory = ContrastiveMemory(samples, dimensions=6, negatives=500, temperature=0.07, momentum=0.8)
    drawn = memory.draw(torch.tensor([0, 3]))
    labels = samples.labels[drawn]
    assert (labels[0] != 0).all() and (labels[1] != 3).all()
    assert len(drawn[0].unique()) == 30, "every sample of the other classes is drawn"
    own = F.normalize(torch.randn(2, 6), dim=1).requires_grad_()
    other = F.normalize(torch.randn(2, 6), dim=1)
    bank = memory.student[[3, 5]].clone()
    value = memory(own, other, Batch(torch.zeros(2), samples.labels[[3, 5]], torch.tensor([6, 10]))).mean()
    value.backward()
    assert torch.isfinite(value) and own.grad.abs().sum() > 0
    torch.testing.assert_close(memory.student[[3, 5]], F.normalize(0.8 * bank + 0.2 * own.detach(), dim=1))


def test_contrast_with_the_memory_by_loop(monkeypatch):
    """Noise contrastive estimation against n stored samples, K of them negatives, both ways; Z from the first batch."""
    torch.manual_seed(0)
    samples = ContrastiveSamples(torch.arange(40), torch.arange(40) % 4)
    memory = ContrastiveMemory(samples, dimensions=6, negatives=7, temperature=0.5, momentum=0.5)
    own, other = (F.normalize(torch.randn(3, 6), dim=1) for _ in range(2))
    drawn = memory.draw(samples.labels[:3])
    monkeypatch.setattr(memory, "draw", lambda labels: drawn)
    total = 0.0
    for embedding, bank in ((own, memory.teacher.clone()), (other, memory.student.clone())):
        chosen = [[b, *drawn[b].tolist()] for b in range(3)]
        scores = torch.tensor([[math.exp(float(bank[c] @ embedding[b]) / 0.5) for c in chosen[b]] for b in range(3)])
        z, noise = float(scores.mean()) * 40, 7 / 40
        for b in range(3):
            p = [float(score) / z for score in scores[b]]
            total -= (math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (q + noise)) for q in p[1:])) / 3
    value = memory(own, other, Batch(torch.zeros(3), samples.labels[:3], torch.arange(3)))
    assert float(value.mean()) == pytest.approx(total, rel=1e-4)


def test_features_are_compared_in_full_precision(networks, batch):
    student, _, (teacher, _) = networks
    method = CosineDistillation(student, FrozenTeachers([teacher]), name="", xe_weight=0.0, contrast_weight=1.0).train()
    seen = []
    method.contrast = lambda own, target_features, batch: seen.append((own @ own.T).dtype) or own.sum()
    with torch.autocast("cpu", torch.bfloat16):
        method(batch)
    assert seen == [torch.float32]


def test_a_teachers_backbone_in_training_mode_drifts_and_its_weights_stay(networks, batch):
    """As in the authors' code; by default nothing of a teacher changes."""
    student, _, (teacher, _) = networks
    for drifts in (False, True):
        frozen = FrozenTeachers([deepcopy(teacher)])
        options = {"name": "", "xe_weight": 0.1, "contrast_weight": 10.0, "train_teacher": drifts}
        method = CosineDistillation(deepcopy(student), frozen, **options).train()
        method(batch).loss.backward()
        (after,) = frozen.models
        changed = {k for k, v in after.state_dict().items() if not torch.equal(v, teacher.state_dict()[k])}
        assert bool(changed) == drifts and all("running" in key or "tracked" in key for key in changed)
        assert any(key.startswith("teachers.") for key in method.trained_state()) == drifts, "a resumed run goes on"
        assert not after.head.training and all(p.grad is None for p in after.parameters())
