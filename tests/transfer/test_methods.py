"""The methods: what they compute, what they leave alone, what they never read."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.transfer.data_partition import BiDirectional, DataPartition, FlipPartition, GatedPartition
from recombine.transfer.distillation import Distillation, MomentumDistillation, SelfDistillation
from recombine.transfer.losses import cross_entropy, kl_divergence
from recombine.transfer.teacher_cache import FrozenTeachers


def loss(method, batch, training=False):
    method.train(training)
    return method(batch).loss


def test_kl_and_cross_entropy_mix(networks, batch):
    student, _, teachers = networks
    student_logits, teacher_logits = (model(batch.images) for model in (student, teachers[0]))
    kl = F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="batchmean")
    xe = F.cross_entropy(student_logits, batch.labels)
    for weight in (0.0, 0.5, 1.0):
        method = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=weight)
        torch.testing.assert_close(loss(method, batch), weight * kl + (1 - weight) * xe)
        assert method.reads_labels == (weight < 1)


@pytest.mark.parametrize("samples", ["not_negative", "positive"])
def test_kl_of_chosen_flips(networks, batch, samples):
    student, _, teachers = networks
    student_logits, teacher_logits = (model(batch.images) for model in (student, teachers[0]))
    right, teacher_right = ((logits.argmax(1) == batch.labels) for logits in (student_logits, teacher_logits))
    kept = ~(right & ~teacher_right) if samples == "not_negative" else teacher_right & ~right
    assert 0 < kept.sum() < len(kept)
    expected = F.kl_div(student_logits[kept].log_softmax(1), teacher_logits[kept].softmax(1), reduction="batchmean")
    method = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=1.0, kl_samples=samples)
    torch.testing.assert_close(loss(method, batch), expected)


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_partition_by_loop(networks, batch, supervised, count):
    student, initial, teachers = networks
    method = DataPartition(
        student, FrozenTeachers(teachers[:count]), FrozenTeachers([initial]), name="", supervised=supervised
    )
    candidates = [model(batch.images).softmax(1) for model in (initial, *teachers[:count])]
    total = 0.0
    student_logits = student(batch.images).log_softmax(1)
    for i, label in enumerate(batch.labels.tolist()):
        sure = [float(p[i, label] if supervised else p[i].max()) for p in candidates]
        winner = candidates[max(range(len(sure)), key=lambda k: (sure[k], -k))][i]
        total += float((winner * (winner.log() - student_logits[i])).sum().detach())
    torch.testing.assert_close(loss(method, batch).item(), total / len(batch.labels), rtol=1e-4, atol=1e-6)
    assert ("positive_flips" in method(batch).logs) == supervised


def test_partition_with_the_same_teacher_is_self_distillation(networks, batch):
    student, initial, _ = networks
    method = DataPartition(student, FrozenTeachers([deepcopy(initial)]), FrozenTeachers([initial]), name="")
    assert loss(method, batch).abs() < 1e-6
    own = SelfDistillation(student, FrozenTeachers([initial]), name="")
    torch.testing.assert_close(loss(method, batch, training=True), loss(own, batch, training=True))


def test_partition_where_the_teacher_always_wins_is_kl(networks, batch):
    student, initial, teachers = networks
    for parameter in initial.parameters():
        torch.nn.init.zeros_(parameter)  # uniform predictions: nobody is less sure
    partition = DataPartition(
        student, FrozenTeachers(teachers[:1]), FrozenTeachers([initial]), name="", supervised=False
    )
    kl = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=1.0)
    torch.testing.assert_close(loss(partition, batch), loss(kl, batch))
    assert partition(batch).logs["to_teacher"] == 100


def test_initial_weight(networks, batch):
    student, initial, teachers = networks
    logits = [model(batch.images).detach() for model in (initial, teachers[0])]

    def fresh():
        return FrozenTeachers(teachers[:1]), FrozenTeachers([initial])

    def value(weight):
        return loss(DataPartition(student, *fresh(), name="", initial_weight=weight), batch)

    one, two, three = value(1.0), value(2.0), value(3.0)
    torch.testing.assert_close(three - two, two - one)
    target, to_teacher = DataPartition(student, *fresh(), name="").target(None, logits, batch.labels)
    from_initial = kl_divergence(student(batch.images), target)[~to_teacher].sum() / len(batch.labels)
    assert 0 < to_teacher.sum() < len(batch.labels)
    torch.testing.assert_close(two - one, from_initial.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["teacher_on_positive", "initial_on_negative", "average"])
def test_flip_rules_by_loop(networks, batch, rule):
    student, initial, teachers = networks
    method = FlipPartition(student, FrozenTeachers(teachers[:1]), FrozenTeachers([initial]), name="", rule=rule)
    now, was, teacher_logits = (model(batch.images).detach() for model in (teachers[1], initial, teachers[0]))
    target, routed = method.target(now, [was, teacher_logits], batch.labels)
    for i, label in enumerate(batch.labels.tolist()):
        right, teacher_right = now[i].argmax() == label, teacher_logits[i].argmax() == label
        if teacher_right and not right:
            expected, taught = teacher_logits[i], True
        elif right and not teacher_right:
            expected, taught = was[i], False
        else:
            neutral = {
                "teacher_on_positive": was[i],
                "initial_on_negative": teacher_logits[i],
                "average": (teacher_logits[i] + now[i]) / 2,
            }
            expected, taught = neutral[rule], rule == "initial_on_negative"
        assert torch.equal(target[i], expected) and bool(routed[i]) == taught


def test_a_gate_on_features_by_loop(networks, batch):
    student, initial, teachers = networks
    torch.manual_seed(0)
    method = GatedPartition(student, FrozenTeachers([teachers[1]]), FrozenTeachers([initial]), name="", dimensions=7)
    with torch.no_grad():
        for value in student.parameters():
            value.mul_(1.1)  # a student that has gone on from where it was
    found = method.train()(batch)
    total, taught = 0.0, 0
    own, student_logits = student.features_and_logits(batch.images)
    (kept, was), (new, teacher_logits) = (model.features_and_logits(batch.images) for model in (initial, teachers[1]))
    embedded = own @ method.embed_student, kept @ method.embed_initial, new @ method.embed_teacher
    for i in range(len(batch.labels)):
        own_, kept_, new_ = (e[i] for e in embedded)
        to_teacher = torch.dot(method.gate, new_ * own_) > torch.dot(method.gate, kept_ * own_)
        target = (teacher_logits if to_teacher else was)[i]
        total += F.kl_div(student_logits[i].log_softmax(0), target.softmax(0), reduction="sum").item()
        taught += int(to_teacher)
    assert found.loss.item() == pytest.approx(total / len(batch.labels), rel=1e-4)
    assert found.logs["to_teacher"].item() == pytest.approx(100 * taught / len(batch.labels))
    assert 0 < taught < len(batch.labels)
    assert {id(p) for p in method.parameters() if p.requires_grad} == {id(p) for p in student.parameters()}


def test_frozen_networks_stay_as_they_are(networks, batch):
    student, initial, teachers = networks
    method = DataPartition(student, FrozenTeachers(teachers), FrozenTeachers([initial]), name="").train()
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
        method = DataPartition(student, FrozenTeachers(teachers), FrozenTeachers([initial]), name="", batchnorm=policy)
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
    student_logits, teacher_logits = (model(batch.images) for model in (student, teachers[0]))
    softened = {"temperature": 3.0, "topk": 4}
    kl = kl_divergence(student_logits, teacher_logits, **softened).mean()
    assert (kl - kl_divergence(student_logits, teacher_logits).mean()).abs() > 1e-3
    torch.testing.assert_close(
        loss(Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=1.0, **softened), batch), kl
    )
    partition = DataPartition(student, FrozenTeachers(teachers[:1]), FrozenTeachers([initial]), name="", **softened)
    target, _ = partition.target(student_logits, [initial(batch.images), teacher_logits], batch.labels)
    torch.testing.assert_close(loss(partition, batch), kl_divergence(student_logits, target, **softened).mean())
    own = SelfDistillation(student, FrozenTeachers([teachers[0]]), name="", temperature=3.0)
    torch.testing.assert_close(loss(own, batch), kl_divergence(student_logits, teacher_logits, 3.0).mean())
    for smooth in ({"label_smoothing": 0.2}, {"label_smoothing": 0.2, "xe_on_probabilities": True}):
        method = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=0.0, **smooth)
        on = smooth.get("xe_on_probabilities", False)
        expected = cross_entropy(student_logits, batch.labels, label_smoothing=0.2, on_probabilities=on).mean()
        torch.testing.assert_close(loss(method, batch), expected)


def test_without_weight_the_teacher_is_never_evaluated(networks, batch):
    student, _, teachers = networks
    method = Distillation(student, FrozenTeachers(teachers), name="xe", kl_weight=0.0)
    assert method.frozen == () and not hasattr(method, "teachers")
    assert loss(method, batch) > 0


def test_logs_say_what_was_learnt_and_what_is_left(networks, batch):
    student, _, teachers = networks
    method = DataPartition(student, FrozenTeachers(teachers[:1]), FrozenTeachers([teachers[1]]), name="").eval()
    logs = method(batch).logs
    now, was, teacher_logits = (
        model(batch.images).argmax(1) == batch.labels for model in (student, teachers[1], teachers[0])
    )
    expected = {"knowledge_gain": now & ~was, "knowledge_loss": was & ~now, "positive_flips": teacher_logits & ~was}
    expected |= {"negative_flips": was & ~teacher_logits, "neutral_flips": was == teacher_logits}
    for name, mask in expected.items():
        assert float(logs[name]) == pytest.approx(100 * float(mask.float().mean()), abs=1e-4), name
    assert float(logs["transfer_delta"]) == pytest.approx(
        100 * float(now.float().mean() - was.float().mean()), abs=1e-4
    )
    mixed = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=0.5).eval()(batch).logs
    assert float(mixed["positive_flips"]) == pytest.approx(
        100 * float((teacher_logits & ~now).float().mean()), abs=1e-4
    )
    blind = Distillation(student, FrozenTeachers(teachers[:1]), name="", kl_weight=1.0).eval()(batch).logs
    assert blind.keys() == {"loss", "kl"}, "without labels nobody is right or wrong"


def momentum(student, teacher, **options):
    return MomentumDistillation(student, FrozenTeachers([teacher]), 256, name="", kl_weight=0.5, **options)


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
        with method.evaluation_weights():
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
    with method.evaluation_weights():
        assert torch.equal(next(student.parameters()), fast)
    resetting = momentum(student, teacher, decay=0.5, reset_fast_on_eval=True)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    with resetting.evaluation_weights():
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


def test_slow_weights_move_after_the_first_step_and_every_third_from_there(networks):
    student, _, (teacher, _) = networks
    method = momentum(student, teacher, decay=0.5, every=3)
    weight, slow = next(student.parameters()), next(iter(student.state_dict().values())).clone()
    for step in range(7):
        with torch.no_grad():
            weight.add_(1.0)
        method.after_update(step)
        if step in (0, 3, 6):
            slow = (slow + weight.detach()) / 2
        with method.evaluation_weights():
            torch.testing.assert_close(weight.detach(), slow)


def test_interval_follows_the_batch_size(networks):
    student, _, (teacher, _) = networks
    intervals = [
        MomentumDistillation(student, FrozenTeachers([teacher]), size, name="", kl_weight=0.5).every
        for size in (64, 256, 1024)
    ]
    assert intervals == [8, 2, 1]


def test_both_directions(networks, batch):
    student, _, (teacher, _) = networks
    method = BiDirectional(student, teacher, name="")
    student_logits, teacher_logits = student(batch.images), teacher(batch.images)
    total = F.cross_entropy(student_logits, batch.labels) + F.cross_entropy(teacher_logits, batch.labels)
    for i, label in enumerate(batch.labels.tolist()):
        teaches = teacher_logits[i].softmax(0)[label] > student_logits[i].softmax(0)[label]
        source, learner = (teacher_logits[i], student_logits[i]) if teaches else (student_logits[i], teacher_logits[i])
        total = total + F.kl_div(learner.log_softmax(0), source.softmax(0), reduction="sum") / len(batch.labels)
    torch.testing.assert_close(loss(method, batch), total)
    method.train()(batch).loss.backward()
    assert all(next(model.parameters()).grad is not None for model in (student, teacher))


def test_one_teacher_methods_refuse_many(networks):
    student, _, teachers = networks
    with pytest.raises(ConfigError, match="takes one teacher at a time, not 2"):
        Distillation(student, FrozenTeachers(teachers), name="kl", kl_weight=1.0)


def test_slow_weights_may_start_after_the_first_step(networks):
    """As in the authors' code, whose slow weights are another name of the fast ones until then."""
    student, _, teachers = networks
    options = {"name": "", "kl_weight": 0.5, "decay": 0.9, "every": 1}
    starts = {}
    for late in (False, True):
        net = deepcopy(student)
        method = MomentumDistillation(net, FrozenTeachers(teachers[:1]), 256, start_after_first_step=late, **options)
        before = next(net.net.parameters()).detach().clone()
        with torch.no_grad():
            next(net.net.parameters()).add_(1)
        method.after_update(0)
        with method.evaluation_weights():
            starts[late] = next(net.net.parameters()).detach() - before
    torch.testing.assert_close(starts[False], torch.full_like(starts[False], 0.1))
    torch.testing.assert_close(starts[True], torch.ones_like(starts[True]))
