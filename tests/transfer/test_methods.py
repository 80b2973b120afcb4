"""The methods: what they compute, what they leave alone, what they never read."""

import math
from copy import deepcopy

import pytest
import torch
from digits import composed, opened
from torch.nn import functional as F

from src import models as zoo
from src.core.config import validate
from src.core.errors import ConfigError
from src.core.types import Batch
from src.transfer import checks
from src.transfer.contrastive import (
    ContrastiveMemory,
    CosineDistillation,
    Samples,
    similarity_loss,
)
from src.transfer.distillation import Distillation, MomentumDistillation, SelfDistillation
from src.transfer.frozen import Frozen, views
from src.transfer.losses import cross_entropy, kl_divergence
from src.transfer.partitioning import BiDirectional, DataPartition, FlipPartition


@pytest.fixture
def networks(folder):
    """Student, its copy as it was, and two teachers."""
    student, *teachers = (zoo.build(name, weights_root=folder / "weights") for name in ("narrow", "wide", "letters"))
    return student, deepcopy(student), teachers


@pytest.fixture(scope="module")
def batch(folder):
    data = opened(folder)
    found = next(data.loader("train", 128, train=False).epoch(0))
    data.close()
    return found


def loss(method, batch, training=False):
    method.train(training)
    return method(batch).loss


def test_kl_and_cross_entropy_mix(networks, batch):
    student, _, teachers = networks
    said, knew = (model(batch.images) for model in (student, teachers[0]))
    kl = F.kl_div(said.log_softmax(1), knew.softmax(1), reduction="batchmean")
    xe = F.cross_entropy(said, batch.labels)
    for weight in (0.0, 0.5, 1.0):
        method = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=weight)
        torch.testing.assert_close(loss(method, batch), weight * kl + (1 - weight) * xe)
        assert method.reads_labels == (weight < 1)


@pytest.mark.parametrize("samples", ["not_negative", "positive"])
def test_kl_of_chosen_flips(networks, batch, samples):
    student, _, teachers = networks
    said, knew = (model(batch.images) for model in (student, teachers[0]))
    right, teacher_right = ((logits.argmax(1) == batch.labels) for logits in (said, knew))
    kept = ~(right & ~teacher_right) if samples == "not_negative" else teacher_right & ~right
    assert 0 < kept.sum() < len(kept)
    expected = F.kl_div(said[kept].log_softmax(1), knew[kept].softmax(1), reduction="batchmean")
    method = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=1.0, kl_samples=samples)
    torch.testing.assert_close(loss(method, batch), expected)


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_partition_by_loop(networks, batch, supervised, count):
    student, initial, teachers = networks
    method = DataPartition(student, Frozen(teachers[:count]), Frozen([initial]), name="", supervised=supervised)
    candidates = [model(batch.images).softmax(1) for model in (initial, *teachers[:count])]
    total = 0.0
    said = student(batch.images).log_softmax(1)
    for i, label in enumerate(batch.labels.tolist()):
        sure = [float(p[i, label] if supervised else p[i].max()) for p in candidates]
        winner = candidates[max(range(len(sure)), key=lambda k: (sure[k], -k))][i]
        total += float((winner * (winner.log() - said[i])).sum().detach())
    torch.testing.assert_close(loss(method, batch).item(), total / len(batch.labels), rtol=1e-4, atol=1e-6)
    assert ("positive_flips" in method(batch).logs) == supervised


def test_partition_with_the_same_teacher_is_self_distillation(networks, batch):
    student, initial, _ = networks
    method = DataPartition(student, Frozen([deepcopy(initial)]), Frozen([initial]), name="")
    assert loss(method, batch).abs() < 1e-6
    own = SelfDistillation(student, Frozen([initial]), name="")
    torch.testing.assert_close(loss(method, batch, training=True), loss(own, batch, training=True))


def test_partition_where_the_teacher_always_wins_is_kl(networks, batch):
    student, initial, teachers = networks
    for parameter in initial.parameters():
        torch.nn.init.zeros_(parameter)  # uniform predictions: nobody is less sure
    partition = DataPartition(student, Frozen(teachers[:1]), Frozen([initial]), name="", supervised=False)
    kl = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=1.0)
    torch.testing.assert_close(loss(partition, batch), loss(kl, batch))
    assert partition(batch).logs["to_teacher"] == 100


def test_initial_weight(networks, batch):
    student, initial, teachers = networks

    def value(weight):
        parts = Frozen(teachers[:1]), Frozen([initial])
        return loss(DataPartition(student, *parts, name="", initial_weight=weight), batch, training=True)

    one, two, three = value(1.0), value(2.0), value(3.0)
    torch.testing.assert_close(three - two, two - one)
    assert two > one


@pytest.mark.parametrize("rule", ["teacher_on_positive", "initial_on_negative", "average"])
def test_flip_rules_by_loop(networks, batch, rule):
    student, initial, teachers = networks
    method = FlipPartition(student, Frozen(teachers[:1]), Frozen([initial]), name="", rule=rule)
    now, was, knew = (model(batch.images).detach() for model in (teachers[1], initial, teachers[0]))
    target, routed = method.target(now, [was, knew], batch.labels)
    for i, label in enumerate(batch.labels.tolist()):
        right, teacher_right = now[i].argmax() == label, knew[i].argmax() == label
        if teacher_right and not right:
            expected, taught = knew[i], True
        elif right and not teacher_right:
            expected, taught = was[i], False
        else:
            neutral = {"teacher_on_positive": was[i], "initial_on_negative": knew[i], "average": (knew[i] + now[i]) / 2}
            expected, taught = neutral[rule], rule == "initial_on_negative"
        assert torch.equal(target[i], expected) and bool(routed[i]) == taught


def test_frozen_networks_stay_as_they_are(networks, batch):
    student, initial, teachers = networks
    method = DataPartition(student, Frozen(teachers), Frozen([initial]), name="").train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1)
    method(batch).loss.backward()
    optimizer.step()
    assert not any(k.startswith(("teachers", "initial")) for k in method.trained_state())
    for name, value in method.state_dict().items():
        if name.startswith(("teachers", "initial")):
            assert torch.equal(value, before[name]), name
    assert all(p.grad is None for model in (*teachers, initial) for p in model.parameters())
    assert any(not torch.equal(v, before[k]) for k, v in method.state_dict().items() if k.startswith("net."))


def test_batchnorm_keeps_its_statistics(networks, batch):
    student, initial, teachers = networks
    buffers = {k: v.clone() for k, v in student.named_buffers()}
    for policy, moved in (("keep", False), ("adapt", True)):
        method = DataPartition(student, Frozen(teachers), Frozen([initial]), name="", batchnorm=policy)
        loss(method, batch, training=True)
        assert any(not torch.equal(v, buffers[k]) for k, v in student.named_buffers()) == moved


def test_both_networks_of_a_pair_keep_their_statistics(networks, batch):
    student, _, (teacher, _) = networks
    buffers = {k: v.clone() for model in (student, teacher) for k, v in model.named_buffers(prefix=model.name)}
    for policy, moved in (("keep", False), ("adapt", True)):
        loss(BiDirectional(student, teacher, name="", batchnorm=policy), batch, training=True)
        for model in (student, teacher):
            assert any(not torch.equal(v, buffers[k]) for k, v in model.named_buffers(prefix=model.name)) == moved


def test_terms_take_their_settings(networks, batch):
    """Temperature, topk, label smoothing and cross entropy of probabilities arrive in the losses of the methods."""
    student, initial, teachers = networks
    said, knew = (model(batch.images) for model in (student, teachers[0]))
    softened = {"temperature": 3.0, "topk": 4}
    kl = kl_divergence(said, knew, **softened).mean()
    assert (kl - kl_divergence(said, knew).mean()).abs() > 1e-3
    torch.testing.assert_close(
        loss(Distillation(student, Frozen(teachers[:1]), name="", kl_weight=1.0, **softened), batch), kl
    )
    partition = DataPartition(student, Frozen(teachers[:1]), Frozen([initial]), name="", **softened)
    target, _ = partition.target(said, [initial(batch.images), knew], batch.labels)
    torch.testing.assert_close(loss(partition, batch), kl_divergence(said, target, **softened).mean())
    own = SelfDistillation(student, Frozen([teachers[0]]), name="", temperature=3.0)
    torch.testing.assert_close(loss(own, batch), kl_divergence(said, knew, 3.0).mean())
    for smooth in ({"label_smoothing": 0.2}, {"label_smoothing": 0.2, "xe_on_probabilities": True}):
        method = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=0.0, **smooth)
        on = smooth.get("xe_on_probabilities", False)
        expected = cross_entropy(said, batch.labels, label_smoothing=0.2, on_probabilities=on).mean()
        torch.testing.assert_close(loss(method, batch), expected)


def test_without_weight_the_teacher_is_never_asked(networks, batch):
    student, _, teachers = networks
    method = Distillation(student, Frozen(teachers), name="xe", kl_weight=0.0)
    assert method.frozen == () and not hasattr(method, "teachers")
    assert loss(method, batch) > 0


def test_logs_say_what_was_learnt_and_what_is_left(networks, batch):
    student, _, teachers = networks
    method = DataPartition(student, Frozen(teachers[:1]), Frozen([teachers[1]]), name="").eval()
    logs = method(batch).logs
    now, was, knew = (model(batch.images).argmax(1) == batch.labels for model in (student, teachers[1], teachers[0]))
    expected = {"knowledge_gain": now & ~was, "knowledge_loss": was & ~now, "positive_flips": knew & ~was}
    expected |= {"negative_flips": was & ~knew, "neutral_flips": was == knew}
    for name, mask in expected.items():
        assert float(logs[name]) == pytest.approx(100 * float(mask.float().mean()), abs=1e-4), name
    assert float(logs["transfer_delta"]) == pytest.approx(
        100 * float(now.float().mean() - was.float().mean()), abs=1e-4
    )
    mixed = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=0.5).eval()(batch).logs
    assert float(mixed["positive_flips"]) == pytest.approx(100 * float((knew & ~now).float().mean()), abs=1e-4)
    blind = Distillation(student, Frozen(teachers[:1]), name="", kl_weight=1.0).eval()(batch).logs
    assert blind.keys() == {"loss", "kl"}, "without labels nobody is right or wrong"


def momentum(student, teacher, **options):
    return MomentumDistillation(student, Frozen([teacher]), 256, name="", kl_weight=0.5, **options)


def test_slow_weights(networks):
    student, _, (teacher, _) = networks
    start = deepcopy(student.state_dict())
    method = momentum(student, teacher, decay=0.9, every=2)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(1.0)
    method.after_update(0)
    method.after_update(1)  # not every step
    for name, value in student.named_parameters():
        with method.measured():
            torch.testing.assert_close(value.detach(), start[name] + 0.1)
        torch.testing.assert_close(value.detach(), start[name] + 1.0)
    method.publish()
    counters = [name for name in start if name.endswith("num_batches_tracked")]
    assert counters and all(student.state_dict()[name].dtype == torch.int64 for name in counters)
    torch.testing.assert_close(next(student.parameters()).detach(), next(iter(start.values())) + 0.1)


def test_slow_weights_without_decay_are_the_fast_ones_and_may_replace_them(networks):
    student, _, (teacher, _) = networks
    method = momentum(student, teacher, decay=0.0, every=1)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    fast = next(student.parameters()).detach().clone()
    method.after_update(0)
    with method.measured():
        assert torch.equal(next(student.parameters()), fast)
    resetting = momentum(student, teacher, decay=0.5, reset_fast_on_eval=True)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    with resetting.measured():
        pass
    torch.testing.assert_close(next(student.parameters()).detach(), fast)


def test_slow_weights_with_full_decay_stay_as_they_were(networks):
    student, _, (teacher, _) = networks
    start = next(student.parameters()).detach().clone()
    method = momentum(student, teacher, decay=1 - 1e-12, every=1)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    method.after_update(0)
    method.publish()
    torch.testing.assert_close(next(student.parameters()).detach(), start, rtol=0, atol=1e-11)


def test_interval_follows_the_batch_size(networks):
    student, _, (teacher, _) = networks
    intervals = [
        MomentumDistillation(student, Frozen([teacher]), size, name="", kl_weight=0.5).every for size in (64, 256, 1024)
    ]
    assert intervals == [8, 2, 1]


def test_both_directions(networks, batch):
    student, _, (teacher, _) = networks
    method = BiDirectional(student, teacher, name="")
    said, knew = student(batch.images), teacher(batch.images)
    total = F.cross_entropy(said, batch.labels) + F.cross_entropy(knew, batch.labels)
    for i, label in enumerate(batch.labels.tolist()):
        teaches = knew[i].softmax(0)[label] > said[i].softmax(0)[label]
        source, learner = (knew[i], said[i]) if teaches else (said[i], knew[i])
        total = total + F.kl_div(learner.log_softmax(0), source.softmax(0), reduction="sum") / len(batch.labels)
    torch.testing.assert_close(loss(method, batch), total)
    method.train()(batch).loss.backward()
    assert all(next(model.parameters()).grad is not None for model in (student, teacher))


def test_similarity_of_features_by_loop(networks, batch):
    student, _, (teacher, _) = networks
    features, logits = student.features_and_logits(batch.images[:9])
    torch.testing.assert_close(features, student.features(batch.images[:9]))
    torch.testing.assert_close(logits, student(batch.images[:9]))
    wanted = teacher.features(batch.images[:9])
    total = 0.0
    for i in range(9):
        rows = [torch.stack([F.cosine_similarity(f[i], f[j], dim=0) for j in range(9)]) for f in (features, wanted)]
        total = total + F.kl_div(rows[0].log_softmax(0), rows[1].softmax(0), reduction="sum")
    torch.testing.assert_close(similarity_loss(features, wanted), total, rtol=1e-4, atol=1e-6)


def test_memory_draws_other_classes_and_remembers():
    samples = Samples(torch.arange(0, 80, 2), torch.arange(40) % 4)
    memory = ContrastiveMemory(samples, dimensions=6, negatives=500, temperature=0.07, momentum=0.5)
    drawn = memory.draw(torch.tensor([0, 3]))
    labels = samples.labels[drawn]
    assert (labels[0] != 0).all() and (labels[1] != 3).all()
    assert len(drawn[0].unique()) == 30, "every sample of the other classes is drawn"
    own = F.normalize(torch.randn(2, 6), dim=1).requires_grad_()
    other = F.normalize(torch.randn(2, 6), dim=1)
    bank = memory.student[[3, 5]].clone()
    value = memory(own, other, Batch(torch.zeros(2), samples.labels[[3, 5]], torch.tensor([6, 10])))
    value.backward()
    assert torch.isfinite(value) and own.grad.abs().sum() > 0
    torch.testing.assert_close(memory.student[[3, 5]], F.normalize((bank + own.detach()) / 2, dim=1))


def test_contrast_with_the_memory_by_loop(monkeypatch):
    """Noise contrastive estimation against n stored samples, K of them negatives, both ways; Z from the first batch."""
    torch.manual_seed(0)
    samples = Samples(torch.arange(40), torch.arange(40) % 4)
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
    assert float(value) == pytest.approx(total, rel=1e-4)


def test_features_are_compared_in_full_precision(networks, batch):
    student, _, (teacher, _) = networks
    method = CosineDistillation(student, Frozen([teacher]), name="", xe_weight=0.0, contrast_weight=1.0).train()
    seen = []
    method.contrast = lambda own, wanted, batch: seen.append((own @ own.T).dtype) or own.sum()
    with torch.autocast("cpu", torch.bfloat16):
        method(batch)
    assert seen == [torch.float32]


@pytest.mark.parametrize("method", ["xekl_mcl", "dp_flip_st", "cd", "crd"])
def test_settings_a_method_does_not_have_are_told(folder, method):
    cfg = composed(folder, f"method={method}", "+method.momentun=1")
    (problem,) = validate(cfg)
    assert "unknown setting method.momentun" in problem
    assert validate(composed(folder, f"method={method}")) == []


@pytest.mark.parametrize(("augment", "count"), [("none", 1), ("flip", 2), ("flip_crop", None), ("crop_resize", None)])
def test_views_name_what_the_loader_shows(folder, augment, count):
    data = opened(folder, seed=3)
    options = {"batch_size": 64, "size": 8}
    loader = data.loader("train", **options, train=True, augment=augment)
    stored = next(data.loader("train", 1497, train=False).epoch(0)).images
    found = views(loader)
    if count is None:
        assert found is None
    else:
        view, number = found
        assert number == count
        for batch in loader.epoch(5):
            seen = torch.where(
                view(batch.index, 5).bool()[:, None, None, None], stored.flip(-1)[batch.index], stored[batch.index]
            )
            assert torch.equal(seen, batch.images)
    data.close()


def test_remembered_logits_are_the_live_ones(folder, networks, tmp_path):
    _, _, teachers = networks
    data = opened(folder, seed=1)
    loader = data.loader("train", 64, train=True, augment="flip")
    live, remembered = Frozen(teachers), Frozen(teachers)
    view, count = views(loader)
    remembered.remember(data.loader("train", 64, train=False), view, count, tmp_path, "fp32")
    for epoch in (0, 1):
        live.epoch = remembered.epoch = epoch
        for batch in loader.epoch(epoch):
            for one, other in zip(live(batch), remembered(batch), strict=True):
                torch.testing.assert_close(one, other)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4, "two teachers, two views"
    data.close()


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("kl", "kl_weight=1.5", "a number of at least 0 and at most 1 is needed, such as method.kl_weight=0.5"),
        ("kl", "kl_samples=none", "one of all, not_negative, positive"),
        ("kl", "batchnorm=off", "one of adapt, keep"),
        ("kl", "temperature=0", "a number of more than 0"),
        ("kl", "temperature=warm", "a number of more than 0"),
        ("kl_dp", "temperature=inf", "a number of more than 0"),
        ("kl", "topk=0", "a whole number of at least 1 is needed, such as method.topk=100"),
        ("kl_dp", "topk=-1", "a whole number of at least 1"),
        ("kl_dp", "topk=many", "a whole number of at least 1"),
        ("kl_dp", "topk=1.5", "a whole number of at least 1"),
        ("kl_dp", "initial_weight=-1", "a number of at least 0"),
        ("kl_dp", "supervised=maybe", "true or false"),
        ("dp_flip_st", "rule=coin", "one of teacher_on_positive"),
        ("xe", "label_smoothing=1.5", "a number of at least 0 and at most 1"),
        ("xe", "xe_on_probabilities=2", "true or false"),
        ("xekl_mcl", "decay=1.0", "a number of at least 0 and less than 1"),
        ("xekl_mcl", "every=0", "a number of more than 0"),
        ("xekl_mcl", "reset_fast_on_eval=1", "true or false"),
        ("self_dist", "temperature=-1", "a number of more than 0"),
        ("bi_kd", "detach=perhaps", "true or false"),
        ("cd", "contrast_weight=-1", "a number of at least 0"),
        ("crd", "negatives=0", "a whole number of at least 1"),
        ("crd", "dimensions=2.5", "a whole number of at least 1"),
        ("crd", "nce_temperature=0", "a number of more than 0"),
        ("crd", "nce_momentum=2", "a number of at least 0 and at most 1"),
    ],
)
def test_wrong_settings_are_one_clear_message_before_networks_are_loaded(folder, method, setting, message):
    cfg = composed(folder, f"method={method}", f"method.{setting}")
    (problem,) = checks.method_problems(cfg)
    assert problem.startswith(f"method.{setting}: {message}")
    assert checks.method_problems(composed(folder, f"method={method}")) == []


def test_one_teacher_methods_refuse_many(networks):
    student, _, teachers = networks
    with pytest.raises(ConfigError, match="takes one teacher at a time, not 2"):
        Distillation(student, Frozen(teachers), name="kl", kl_weight=1.0)
