"""Delta-networks: edges, the paper's parameter counts, identity, removal, and what trains."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.graph import trace, traced
from recombine.patch.delta import Delta, DeltaModule, edges, modules_within
from recombine.patch.patched import HeadOnly, TaskNetwork

COUNTS = {  # network: full Delta-modules of 1, 2 and 4 modules, and with the block BatchNorms where published
    "resnet18": ((443_267, 554_310, 610_060), (444_291, 555_846, 611_980), ("0.4", "0.6", "0.6")),
    "resnet34": ((443_654, 555_867, 611_947), (444_678, 557_403, 613_867), ("0.4", "0.6", "0.6")),
    "resnet50": ((7_083_014, 8_858_907, 9_331_051), (7_087_110, 8_865_051, 9_338_731), ("7.1", "8.9", "9.3")),
    "resnet101": ((7_083_014, 8_924_442, 9_396_586), (7_087_110, None, None), ("7.1", None, None)),
    "convnext_tiny": ((3_985_158, 4_989_939, 5_302_431), (3_986_694, 4_992_243, 5_305_311), ("4.0", "5.0", "5.3")),
    "convnext_small": ((3_985_158, 5_054_208, 5_366_700), (3_986_694, None, None), ("4.0", None, None)),
    "convnext_base": ((7_083_014, 8_950_656, 9_505_548), (7_085_062, None, None), ("7.1", None, None)),
    "convnext_large": ((15_932_934, 20_061_312, 21_308_364), (15_936_006, None, None), ("15.9", None, None)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_paper(name):
    with torch.device("meta"):
        graph = trace(getattr(torchvision.models, name)(), 64)
        patches = [Delta(graph, 10, modules=k) for k in (1, 2, 4)]
    modules, with_norms, published = COUNTS[name]
    counts = [sum(p.numel() for block in patch.blocks for p in block.weights.parameters()) for patch in patches]
    assert counts == list(modules)
    for patch, expected, printed in zip(patches, with_norms, published, strict=True):
        if expected is not None:
            assert patch.parameters_without_head() == expected
            assert f"{expected / 1e6:.1f}" == printed


def test_edges_are_all_ordered_pairs_in_canonical_order():
    assert edges(3) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert [len(edges(n)) for n in (2, 3, 4, 6, 9, 16, 23, 24, 27)] == [3, 6, 10, 21, 45, 136, 276, 300, 378]
    assert edges(3, "existing") == [(0, 1), (1, 2), (2, 3)]
    assert edges(3, "new") == [(0, 2), (0, 3), (1, 3)]
    assert edges(3, from_input=False) == [(0, 1), (1, 2), (1, 3), (2, 3)]


NETS = ["resnet8", "resnet20", "resnet20_optB_distiller", "timm:resnet18", "timm:convnext_atto", "timm:densenet121"]
NETS += ["torchvision:resnext50_32x4d", "timm:resnetv2_50", "timm:seresnet18", "micronet_v1_pruned60"]


@pytest.mark.parametrize("name", NETS)
def test_with_neutral_weights_the_network_is_the_base_exactly(network, name):
    model = network(name)
    graph = trace(model.net, 32 if model.size == 32 else 64)
    patch = Delta(graph, 10, weights="base", norm="none")
    patch.head = model.net.get_submodule(patch.head_name)
    patched = TaskNetwork(model.net, patch).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        if model.size == 32:
            images = images[..., :32, :32]
        assert torch.equal(patched(images), model.net(images))
        patch.blocks[-1].weights.values.mul_(0.5)
        assert not torch.equal(patched(images), model.net(images))


def written_out(net, patched, h):
    """What the last block of a ResNet-18 (two sub-blocks, a projection) makes of its input `h`, written out."""
    first, second = net.layer4
    block, options = patched.patch.blocks[0], patched.patch.options
    norms, norm = block.norms, options["norm"]

    def branch(part, value):
        return part.bn2(part.conv2(torch.relu(part.bn1(part.conv1(value)))))

    alpha = dict(zip(patched.patch.pairs[0], block.weights(h).T[:, :, None, None, None], strict=True))
    s0 = first.downsample(h)
    # a skip of the network that has no weight keeps its one; a new one that has none is not there
    into1 = alpha.get((0, 1), 1.0) * s0
    u1 = branch(first, h)
    z1 = u1 + (norms[0](into1) if norm == "skip_sum" else into1)
    s1 = torch.relu(z1)
    if norm == "every_subblock":
        s1 = norms[0](s1)
    into2 = alpha.get((1, 2), 1.0) * s1 + alpha.get((0, 2), 0.0) * s0
    z2 = branch(second, s1) + (norms[1](into2) if norm == "skip_sum" else into2)
    s2 = torch.relu(norms[0](z2) if norm == "last_pre_act" else z2)
    last = {"last_post_act": 0, "every_subblock": 1}
    return norms[last[norm]](s2) if norm in last else s2


VARIANTS = [{"norm": norm} for norm in ("last_post_act", "last_pre_act", "every_subblock", "skip_sum", "none")]
VARIANTS += [{"skips": "new"}, {"skips": "existing"}, {"input_projection": "drop"}]
VARIANTS += [{"skips": "new", "norm": "every_subblock"}, {"skips": "existing", "norm": "skip_sum"}]
VARIANTS += [{"input_projection": "drop", "norm": "last_pre_act"}]
PAIRS = {"new": [(0, 2)], "existing": [(0, 1), (1, 2)], "drop": [(0, 1), (1, 2)]}


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_equals_its_formula(options):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5).eval()
    patched = TaskNetwork(net, Delta(trace(net, 64), 3, modules=1, **options)).eval()
    kind = options.get("skips", options.get("input_projection"))
    assert patched.patch.pairs[0] == PAIRS.get(kind, [(0, 1), (0, 2), (1, 2)])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for norm in patched.patch.blocks[0].norms:
            norm.weight.uniform_(0.5, 1.5), norm.bias.normal_()
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        h = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
        expected = patched.patch.head(written_out(net, patched, h).mean((2, 3)))
        torch.testing.assert_close(patched(x), expected)


def test_dense_layers_are_weighted_by_source():
    torch.manual_seed(0)
    net = timm.create_model("densenet121", num_classes=5).eval()
    patch = Delta(trace(net, 64), 5, modules=1, weights="ones", norm="none")
    patch.head = net.classifier
    patch.blocks[0].weights.values[0] = 0.0  # the first layer sees nothing of the block's input
    blind, x = TaskNetwork(net, patch).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        net.features.denseblock4.denselayer1.register_forward_pre_hook(
            lambda _, inputs: (
                [torch.zeros_like(value) for value in inputs[0]] if isinstance(inputs[0], list) else inputs[0] * 0,
            )
        )
        torch.testing.assert_close(blind(x), net(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "every_subblock"},
        {"norm": "skip_sum"},
        {"norm": "last_pre_act"},
        {"skips": "new"},
        {"skips": "existing"},
        {"weights": "learned"},
        {"weights": "random_fixed"},
        {"input_projection": "drop"},
        {"alpha_init": "base"},
    ],
)
def test_training_changes_the_patch_and_nothing_of_the_base(resnet20, images, options):
    before = {key: value.clone() for key, value in resnet20.net.state_dict().items()}
    with torch.no_grad():
        logits = resnet20(images)
    patched = TaskNetwork(resnet20, Delta(traced(resnet20), 4, modules=2, **options))
    patched.train()
    own = {key: value.clone() for key, value in patched.patch.state_dict().items()}
    optimizer = torch.optim.SGD(patched.patch.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(patched(images), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
        optimizer.step()
    assert all(p.grad is None for p in patched.base.parameters())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in patched.patch.named_parameters() if "fc.bias" in n
    )
    changed = [key for key, value in patched.patch.state_dict().items() if not torch.equal(own[key], value)]
    assert set(changed) >= {key for key in own if "num_batches" in key or key.startswith("head")}
    assert all(torch.equal(before[key], value) for key, value in resnet20.net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(logits, resnet20(images))


def test_weights_depend_on_the_input_and_not_on_its_neighbours():
    torch.manual_seed(0)
    module, x = DeltaModule(8, 6).eval(), torch.randn(5, 8, 9, 9)
    with torch.no_grad():
        alpha = module(x)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(module(x[order]), alpha[order])
    assert alpha.shape == (5, 6) and (alpha > 0).all() and (alpha < 1).all() and not torch.allclose(alpha[0], alpha[1])


def test_random_weights_differ_between_passes_and_fixed_ones_do_not(resnet20, images):
    for weights, same in (("random", False), ("random_fixed", True), ("ones", True)):
        patched = TaskNetwork(resnet20, Delta(traced(resnet20), 4, weights=weights)).eval()
        with torch.no_grad():
            assert torch.equal(patched(images), patched(images)) == same


def test_the_prefix_holds_all_that_no_patch_touches(resnet20, images):
    patched = TaskNetwork(resnet20, Delta(traced(resnet20), 4, modules=1)).eval()
    with torch.no_grad():
        values = patched.prefix(images)
        # the block's input, and what its first sub-block makes of it before any weight comes in
        assert values.shape == (6, patched.prefix_floats) and patched.prefix_floats == 32 * 256 + 2 * 64 * 64
        assert torch.equal(patched(values), patched(images))
    assert TaskNetwork(resnet20, HeadOnly(traced(resnet20), 4)).prefix_floats == 64


def test_modules_within_a_budget(resnet20):
    graph = traced(resnet20)
    one, two, three = (Delta(graph, 4, modules=k).parameters_without_head() for k in (1, 2, 3))
    assert [modules_within(graph, n) for n in (one, two - 1, two, three, 10**9)] == [1, 1, 2, 3, 3]
    assert Delta(graph, 4, budget=two).options["modules"] == 2
    with pytest.raises(ConfigError, match="one module already has"):
        modules_within(graph, one - 1)


@pytest.mark.parametrize("options", [{"weights": "deltas"}, {"norm": "last"}, {"modules": 0}, {"skips": "none"}])
def test_wrong_options_are_named(resnet20, options):
    with pytest.raises(ConfigError, match=rf"method.{next(iter(options))}"):
        Delta(traced(resnet20), 4, **options)


def test_the_module_is_its_formula():
    """alpha = sigmoid(W mean(relu(bn(conv(relu(bn(conv(x))))))) + b): the mean over space of two convolutions."""
    torch.manual_seed(0)
    module = DeltaModule(6, 3, strides=(1, 2)).eval()
    first, norm1, _, second, norm2, _ = module.features
    x = torch.randn(4, 6, 8, 8)
    with torch.no_grad():
        for norm in (norm1, norm2):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.uniform_(0.5, 1.5)
        hidden = torch.relu(norm1(nn.functional.conv2d(x, first.weight, stride=1, padding=1)))
        map_ = torch.relu(norm2(nn.functional.conv2d(hidden, second.weight, stride=2, padding=1)))
        assert map_.shape == (4, 3, 4, 4)
        expected = torch.sigmoid(map_.mean((2, 3)) @ module.fc.weight.T + module.fc.bias)
        torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("weights", ["delta", "learned"])
def test_a_start_at_the_base_has_its_skips_on_and_the_new_ones_off(weights):
    """Learned weights are exactly those of the base, 1 and 0; modules start around sigmoid(2) and sigmoid(-2)."""
    net = torchvision.models.resnet34(num_classes=5).eval()
    patch = Delta(trace(net, 64), 3, modules=2, weights=weights, alpha_init="base")
    for block, pairs in zip(patch.blocks, patch.pairs, strict=True):
        existing = torch.tensor([float(j == i - 1) for j, i in pairs])
        assert 0 < existing.sum() < len(pairs)
        start = block.weights.values if weights == "learned" else block.weights.fc.bias.sigmoid()
        on, off = (1.0, 0.0) if weights == "learned" else (0.880797, 0.119203)
        torch.testing.assert_close(start.detach(), torch.where(existing > 0, on, off))
