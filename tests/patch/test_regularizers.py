"""Regularizers of fine-tuning: each loss against its equation in NumPy and SciPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hydra import compose
from scipy.special import log_softmax, logsumexp, softmax

from recombine import models
from recombine.cli.search_path import initialize_entry
from recombine.core.results import read_rows
from recombine.core.types import Batch
from recombine.engine.logistic_regression import logistic_regression
from recombine.models.graph import traced
from recombine.patch import recipe
from recombine.patch.delta import Delta
from recombine.patch.end_to_end.bi_tuning import BiTuning, TwoViews, contrast, enqueue
from recombine.patch.end_to_end.delta_attention import DeltaAttention
from recombine.patch.end_to_end.method import EndToEnd
from recombine.patch.end_to_end.regularizers import BSS, LWF, CoTuning, StochNorm
from recombine.patch.patched import HeadOnly, TaskNetwork
from recombine.run.launch import launch

LABELS = torch.tensor([0, 1, 2, 0, 1, 0])


@pytest.fixture
def network(network):
    """ResNet-8 of ten classes, all of which trains, with a classifier of three."""
    model = network("resnet8", size=16)
    return TaskNetwork(model.requires_grad_(True), HeadOnly(traced(model), 3), frozen=False)


@pytest.fixture
def batch(images):
    return Batch(images, LABELS, torch.arange(6))


class Images:
    """A loader of one batch."""

    def __init__(self, batch):
        self.batch = batch

    @property
    def indices(self):
        return self.batch.index.numpy()

    def epoch(self, epoch, start=0):
        yield self.batch


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values(network, batch):
    """Features and the base's own logits of a network in its mode of now, float64."""
    features, _ = network.features_and_logits(batch.images)
    logits = network.base.get_submodule(network.patch.head_name)(features)
    return features.detach().double().numpy(), logits.detach().double().numpy()


def test_plain_fine_tuning_is_the_cross_entropy(network, batch):
    method = EndToEnd(network).eval()
    _, logits = network.features_and_logits(batch.images)
    expected = -log_softmax(logits.detach().double().numpy(), 1)[np.arange(6), LABELS].mean()
    assert method(batch).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_base_has_its_own_learning_rate_and_its_classifier_does_not_train(network):
    method = EndToEnd(network, base_lr_scale=0.1)
    method.train()
    new, old = method.parameter_groups()
    assert {id(v) for v in new["params"]} == {id(v) for v in network.patch.parameters()} and "lr_scale" not in new
    head = {id(v) for v in network.base.get_submodule(network.patch.head_name).parameters()}
    assert {id(v) for v in old["params"]} == {id(v) for v in network.base.parameters()} - head
    assert old["lr_scale"] == 0.1


@pytest.mark.parametrize("smallest", [1, 3])
def test_bss_is_the_smallest_squared_singular_values(network, batch, smallest):
    features = torch.tensor(numbers(6, 64), requires_grad=True)
    penalty = BSS(network, weight=0.5, smallest=smallest).penalty(batch, features)
    u, s, v = np.linalg.svd(features.detach().double().numpy(), full_matrices=False)
    assert penalty.item() == pytest.approx(0.5 * (s[-smallest:] ** 2).sum(), rel=1e-4)
    # what BatchSpectralShrinkage of the Transfer-Learning-Library (c4aa59e) gives for these numbers
    assert penalty.item() == pytest.approx(0.5 * {1: 40.12447, 3: 145.98653}[smallest], rel=1e-6)
    penalty.backward()  # d sigma_i^2 = 2 sigma_i u_i v_i'
    slope = 0.5 * sum(2 * s[i] * np.outer(u[:, i], v[i]) for i in range(6 - smallest, 6))
    np.testing.assert_allclose(features.grad.numpy(), slope, atol=1e-4)


def test_lwf_is_the_divergence_from_the_base_as_it_was(network, batch):
    method = LWF(network, weight=4.0, temperature=3.0).eval()
    _, before = values(network, batch)
    with torch.no_grad():
        for value in network.base.parameters():
            value.mul_(1.1)
    features, _ = network.features_and_logits(batch.images)
    _, now = values(network, batch)
    told = softmax(before / 3, 1)
    expected = 4 * (told * (np.log(told) - log_softmax(now / 3, 1))).sum(1).mean()
    assert method.penalty(batch, features).item() == pytest.approx(expected, rel=1e-3) and expected > 0
    method.train()
    assert not method.source.training and not any(key.startswith("source") for key in method.trained_state())


def test_co_tuning_asks_the_base_for_what_it_said_of_the_class(network, batch):
    method = CoTuning(network, weight=2.3)
    network.eval()
    _, logits = values(network, batch)
    told = softmax(logits, 1)
    relationship = np.stack([told[label == LABELS].mean(0) for label in range(3)])
    method.prepare(Images(batch))
    np.testing.assert_allclose(method.relationship.numpy(), relationship, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(method.relationship.sum(1), 1, rtol=1e-5)
    features, _ = network.features_and_logits(batch.images)
    expected = -2.3 * (relationship[LABELS] * log_softmax(logits, 1)).sum(1).mean()
    penalty = method.penalty(batch, features)
    assert penalty.item() == pytest.approx(expected, rel=1e-4)
    method.train()
    penalty.backward()
    assert network.base.get_submodule(network.patch.head_name).weight.grad.abs().sum() > 0  # it trains too


def maps(base, preprocess, images, names):
    """What the named convolutions give, float64."""
    found = {}
    hooks = [
        base.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: found.update({name: o.detach()}))
        for name in names
    ]
    with torch.no_grad():
        base(preprocess(images))
    for hook in hooks:
        hook.remove()
    return [found[name].double().numpy() for name in names]


def test_delta_holds_maps_by_the_attention_of_their_channels(network, batch):
    names = ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    before = maps(network.base.eval(), network.preprocess, batch.images, names)
    method = DeltaAttention(network, weight=0.01, head_weight=0.1)
    assert [node.target for node in method.nodes] == names
    attention = [np.random.default_rng(k).dirichlet(np.ones(each.shape[1])) for k, each in enumerate(before)]
    for k, each in enumerate(attention):
        method.get_buffer(f"attention{k}").copy_(torch.from_numpy(each))
    with torch.no_grad():
        for value in network.base.parameters():
            value.mul_(1.1)
    method.train()
    network.eval()
    features, _ = network.features_and_logits(batch.images)
    penalty = method.penalty(batch, features)
    after = maps(network.base, network.preprocess, batch.images, names)
    omega = sum(
        0.5 * (now.shape[1] / now[0, 0].size * a * np.square(now - then).sum((2, 3))).sum()
        for now, then, a in zip(after, before, attention, strict=True)
    )
    head = sum(value.detach().double().square().sum().item() for value in network.patch.head.parameters())
    assert penalty.item() == pytest.approx(0.01 * omega + 0.05 * head, rel=1e-3) and omega > 0
    penalty.backward()
    assert network.base.get_submodule("layer1.0.conv2").weight.grad.abs().sum() > 0
    assert all(value.grad is None for value in method.source.parameters())
    assert {group["weight_decay"] for group in method.parameter_groups()} == {0.0}


def test_the_attention_of_delta_is_the_loss_without_a_filter(network, batch):
    """Filters are zeroed in the weights here, one after the other, with the images through the whole network."""
    network.eval()
    method = DeltaAttention(network, images=3)
    method.prepare(Images(batch))
    base, conv = network.base, network.base.get_submodule("layer2.0.conv2")
    with torch.no_grad():
        features, _ = network.features_and_logits(batch.images)
        weight, bias = logistic_regression(features, LABELS, 3)

        def loss():
            found, _ = network.features_and_logits(batch.images[::2])  # three of six, spread over all
            return torch.nn.functional.cross_entropy(found @ weight.T + bias, LABELS[::2]).item()

        rise, whole = [], loss()
        for channel in range(conv.out_channels):
            kept = conv.weight[channel].clone()
            conv.weight[channel] = 0
            rise.append(loss() - whole)
            conv.weight[channel] = kept
    rise = np.array(rise)
    expected = softmax((rise - rise.mean()) / rise.std() / 5)
    np.testing.assert_allclose(method.attention1.numpy(), expected, rtol=2e-2)
    assert expected.max() > 1.2 * expected.min() and base.layer2[0].conv2 is conv


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_stochastic_normalization_of_one_layer(network, p):
    StochNorm(network, p=p)
    norm = next(module for module in network.base.modules() if isinstance(module, torch.nn.BatchNorm2d)).train()
    x = numbers(6, norm.num_features, 4, 4) + 2
    mean, var = (value.double().numpy()[None, :, None, None].copy() for value in (norm.running_mean, norm.running_var))
    weight, bias = (value.detach().double().numpy()[None, :, None, None] for value in (norm.weight, norm.bias))
    batch_mean, batch_var = (f((0, 2, 3), keepdims=True) for f in (x.astype(float).mean, x.astype(float).var))
    torch.manual_seed(3)
    images = torch.from_numpy(x).requires_grad_()
    output = norm(images)
    output.square().sum().backward()
    found = output.detach().numpy()
    running = weight * (x - mean) / np.sqrt(var + norm.eps) + bias
    by_batch = weight * (x - batch_mean) / np.sqrt(batch_var + norm.eps) + bias
    torch.manual_seed(3)
    chosen = (torch.rand(1, norm.num_features, 1, 1) < p).numpy()
    assert {0.0: 0, 1.0: 1}.get(p, chosen.mean()) == chosen.mean() and (p != 0.5 or 0 < chosen.mean() < 1)
    np.testing.assert_allclose(found, np.where(chosen, by_batch, running), rtol=1e-3, atol=1e-4)
    slope = 2 * running * weight / np.sqrt(var + norm.eps)  # of the statistics as they were
    if not chosen.all():
        left = np.broadcast_to(~chosen, x.shape)
        np.testing.assert_allclose(images.grad.numpy()[left], slope[left], rtol=1e-3, atol=1e-4)
    unbiased = batch_var.squeeze() * 96 / 95
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 * var.squeeze() + 0.1 * unbiased, rtol=1e-3)


def test_stochastic_normalization_leaves_evaluation_and_names_alone(network, batch):
    before, logits = network.state_dict().keys(), network.eval()(batch.images)
    StochNorm(network, p=0.5)
    assert network.state_dict().keys() == before
    torch.testing.assert_close(network.eval()(batch.images), logits)


def hand_contrast(own, queue, labels, temperature):
    """Mean divergence of the softmax from a target that is uniform over the sample's own key and its class's queue."""
    losses = []
    for score, row, label in zip(own, queue, labels, strict=True):
        every = np.concatenate([[score], row[label], *[row[c] for c in range(len(row)) if c != label]]) / temperature
        target = 1 / (1 + row.shape[1])
        losses.append(sum(target * (np.log(target) - (v - logsumexp(every))) for v in every[: 1 + row.shape[1]]))
    return np.mean(losses)


def test_the_contrast_by_hand():
    own, scores = numbers(6), numbers(6, 3, 5, seed=1)
    found = contrast(torch.from_numpy(own), torch.from_numpy(scores), LABELS, 0.5)
    assert found.item() == pytest.approx(hand_contrast(own.astype(float), scores.astype(float), LABELS, 0.5), rel=1e-4)


def test_queues_take_samples_in_order_and_the_last_of_too_many():
    following = torch.tensor([1, 0, 0])
    labels = torch.tensor([0, 2, 0, 0, 2])
    slots, last = enqueue(following, labels, 2)
    assert slots.tolist() == [[True, True], [False, False], [True, True]]
    # class 0 begins in slot 1: sample 0 there, 2 in slot 0, 3 in slot 1 over 0
    assert last[0].tolist() == [2, 3] and last[2].tolist() == [1, 4]
    assert following.tolist() == [0, 0, 0]


def test_bi_tuning_by_hand(network, images):
    torch.manual_seed(1)
    method = BiTuning(network, weight=0.5, queue=2, projection=8).eval()
    other = images.flip(3)
    batch = Batch(torch.cat([images, other]), LABELS, torch.arange(6))
    queue_z, queue_h = (value.double().numpy().copy() for value in (method.queue_z, method.queue_h))
    with torch.no_grad():
        (features, logits), (keys, _) = network.features_and_logits(images), network.features_and_logits(other)
        z, key_z = (unit(method.projector(value).double().numpy()) for value in (features, keys))
        scorer = unit(np.concatenate([network.patch.head.weight, network.patch.head.bias[:, None]], 1).astype(float))
    h, key_h = (unit(np.pad(value.double().numpy(), ((0, 0), (0, 1)), constant_values=1)) for value in (features, keys))
    loss_z = hand_contrast((z * key_z).sum(1), np.einsum("bd,ckd->bck", z, queue_z), LABELS, 0.07)
    # three samples of class 0 go round a queue of two: the third over the first; one of class 2
    queue_h[0], queue_h[1], queue_h[2, 0] = key_h[[5, 3]], key_h[[1, 4]], key_h[2]
    loss_y = hand_contrast((h * scorer[LABELS]).sum(1), np.einsum("bd,ckd->bck", scorer[LABELS], queue_h), LABELS, 0.07)
    entropy = -log_softmax(logits.double().numpy(), 1)[np.arange(6), LABELS].mean()
    assert method(batch).loss.item() == pytest.approx(entropy + 0.5 * (loss_z + loss_y), rel=1e-4)
    np.testing.assert_allclose(method.queue_h.numpy(), queue_h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(method.queue_z[1].numpy(), key_z[[1, 4]], rtol=1e-4, atol=1e-5)


def test_two_views_of_each_image():
    class Stored:
        def epoch_batches(self, epoch, start):
            return [torch.tensor([4, 5]), torch.tensor([6])][start:]

        def read(self, view, places):
            yield from (Batch(place + 100 * view, place % 2, place) for place in places)

    first, second = TwoViews(Stored()).epoch(3)
    assert first.images.tolist() == [604, 605, 704, 705] and first.labels.tolist() == [0, 1]
    assert [batch.images.tolist() for batch in TwoViews(Stored()).epoch(3, start=1)] == [[606, 706]]
    assert second.index.tolist() == [6]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_copy_of_a_deep_network_is_its_own(images):
    """Its graph is a longer chain of nodes than Python can follow by recursion."""
    model = models.build({"name": "resnet110", "weights": None, "size": 8, "classes": 10}, classes=10)
    original = TaskNetwork(model, Delta(traced(model), 3)).eval()
    twin, logits = copy.deepcopy(original), original(images)
    torch.testing.assert_close(twin(images), logits, rtol=0, atol=0)
    with torch.no_grad():
        for value in twin.parameters():
            value.mul_(1.5)
    assert not torch.allclose(twin(images), logits)
    torch.testing.assert_close(original(images), logits, rtol=0, atol=0)


def test_the_keys_network_follows_slowly(network):
    method = BiTuning(network, momentum=0.9)
    before = copy.deepcopy(method.key.state_dict())
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1.0)
    method.after_update(0)
    moved = dict(method.key.named_parameters())
    assert moved and all(torch.allclose(value, before[name] + 0.1, atol=1e-6) for name, value in moved.items())
    assert not any(value.requires_grad for value in moved.values())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    base = models.build({"name": "resnet8", "weights": None, "size": 8}, classes=5)
    models.save(base, folder / "base.safetensors", {})
    return folder


@pytest.mark.parametrize(
    "regularizer", ["none", "lwf", "bss", "stoch_norm", "co_tuning", "bi_tuning", "delta_attention"]
)
def test_two_steps_of_each_with_modules_too(tmp_path, weights, regularizer):
    words = [f"model.name={weights}/base.safetensors", "model=any", "loader=torch", "loader.workers=0", "logger=none"]
    words += ["protocol=end_to_end", "method=delta_all", "tasks=[{name:digits,fraction:0.3}]", "engine.max_steps=2"]
    words += [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    words += [f"regularizer={regularizer}", "batch_size=32", "device=cpu", "base_lr_scale=0.1"]
    with initialize_entry("patch"):
        launch(recipe, compose("patch/patch", words))
    (row,) = read_rows(tmp_path / "output")
    assert row.cell["regularizer"] == regularizer and row.cell["dataset"] == "digits"
    assert row.metrics["steps"] == 2 and row.metrics["accuracy_patched"] > 0
