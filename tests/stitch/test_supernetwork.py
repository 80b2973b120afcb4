"""The supernetwork: its corners are the parents, its genotypes networks, and what is inactive changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recombine.core.errors import ConfigError
from recombine.stitch.search.space import references
from recombine.stitch.supernetwork import StitchPoint, Supernetwork


def random_genotypes(net, count: int, rate: float = 0.3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    genes = (rng.random((count, len(net.alphabet))) < rate).astype(np.int8)
    genes[:, -1] = rng.integers(3, size=count)
    return list(genes)


@torch.no_grad()
def test_without_stitches_it_is_a_or_b_or_their_mean(net, images):
    a, b = (parent.model(images) for parent in net.parents)
    for genotype, expected in zip(references(len(net.alphabet)), (a, b, (a + b) / 2), strict=True):
        net.set_genotype(genotype)
        assert torch.equal(net(images), expected)


@torch.no_grad()
def test_parents_may_normalise_differently(joined, model, images):
    a, b = model("resnet8", 0), model("cnn", 1, mean=[0.2, 0.4, 0.6], std=[0.5, 0.2, 0.3])
    net = joined(a, b)
    net.set_genotype(references(len(net.alphabet))[1])
    torch.testing.assert_close(net(images), b(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def reference(net: Supernetwork, genotype: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """The same network computed from its definition: recursively, one value at a time, nothing shared."""
    normalised = net.preprocess(images)

    def value(side, node):
        """What the readers of a node see."""
        for gene in range(len(net.stitches)):
            if net.node(gene) == (net.parents[side], node) and genotype[gene]:
                return net.stitches[gene](raw(1 - side, net.node(gene ^ 1)[1]))
        return raw(side, node)

    def raw(side, node):
        module = net.nets[side]
        if node.op == "placeholder":
            return normalised
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: value(side, source))
        if node.op == "call_module":
            return module.get_submodule(node.target)(*args, **kwargs)
        if node.op == "get_attr":
            return module.get_parameter(node.target)
        return getattr(args[0], node.target)(*args[1:], **kwargs) if node.op == "call_method" else node.target(*args)

    ends = [raw(side, parent.output) for side, parent in enumerate(net.parents)]
    return {0: ends[0], 1: ends[1], 2: (ends[0] + ends[1]) / 2}[int(genotype[-1])]


@torch.no_grad()
def test_every_genotype_is_the_network_its_definition_says(net, images):
    for genotype in random_genotypes(net, 8):
        net.set_genotype(genotype)
        torch.testing.assert_close(net(images), reference(net, genotype, images))


@torch.no_grad()
def test_many_at_once_are_each_alone_and_share_what_they_have_in_common(net, images):
    genotypes = random_genotypes(net, 10, 0.15)
    together = net.logits(net.plan(genotypes), images)
    for genotype, logits in zip(genotypes, together, strict=True):
        net.set_genotype(genotype)
        assert torch.equal(net(images), logits)
    alone = sum(len(net.plan([genotype]).steps) for genotype in genotypes)
    assert len(net.plan(genotypes).steps) < alone
    assert len(net.plan(genotypes + genotypes).steps) == len(net.plan(genotypes).steps)


@torch.no_grad()
def test_inactive_genes_change_nothing_and_active_ones_do(net, images):
    """Against brute force: every gene of a genotype is flipped, and the logits compared."""
    for genotype in random_genotypes(net, 6, seed=1):
        active = net.active(genotype)
        net.set_genotype(genotype)
        logits = net(images)
        assert active[-1]
        for gene in range(len(net.stitches)):
            flipped = genotype.copy()
            flipped[gene] ^= 1
            net.set_genotype(flipped)
            assert torch.equal(net(images), logits) != active[gene]


@torch.no_grad()
def test_phenotypes_are_equal_if_and_only_if_the_networks_are(net, images):
    genotypes = random_genotypes(net, 40, 0.1, seed=2)
    rng = np.random.default_rng(3)
    # the same networks: inactive genes at random
    others = [np.where(net.active(g), g, rng.integers(2, size=len(g))).astype(np.int8) for g in genotypes]
    everyone = genotypes + others
    keys = [net.phenotype(genotype).tobytes() for genotype in everyone]
    logits = net.logits(net.plan(everyone), images)
    for i in range(len(everyone)):
        for j in range(i):
            assert (keys[i] == keys[j]) == torch.equal(logits[i], logits[j])


def test_cost_of_the_corners_is_the_parents(net):
    a, b, both = (net.cost(genotype) for genotype in references(len(net.alphabet)))
    assert both == a + b
    for parent, cost in zip(net.parents, (a, b), strict=True):
        sizes: dict[str, int] = {}

        def count(name, module, shape, sizes=sizes):
            weights = sum(p.numel() for p in module.parameters())
            sizes[name] = weights * (shape[2] * shape[3] if isinstance(module, torch.nn.Conv2d) else 1)

        hooks = [
            module.register_forward_hook(lambda m, _, out, name=name, count=count: count(name, m, out.shape))
            for name, module in parent.net.named_modules()
            if not list(module.children()) and list(module.parameters())
        ]
        with torch.no_grad():
            parent.net(torch.zeros(1, 3, 16, 16))
        for hook in hooks:
            hook.remove()
        assert cost == sum(sizes.values())


def test_a_stitch_costs_its_own_and_saves_what_it_cuts_off(net):
    """One switch on a node that all paths of its network pass: the receiver's layers below are not computed."""
    gene = 2 * (len(net.pairs) - 1)  # the last pair, A's switch: A's upper end on B's features
    genotype = references(len(net.alphabet))[0]
    genotype[gene] = 1
    a, b, _ = (net.cost(reference) for reference in references(len(net.alphabet)))
    required = net.graph.required(genotype)[0]
    above = {vertex for vertex in required if net.graph.vertices[vertex].side == 0}
    below = {vertex for vertex in required if net.graph.vertices[vertex].side == 1}
    stitch = sum(p.numel() for p in net.stitches[gene].parameters())
    assert net.cost(genotype) == stitch + sum(net.graph.vertices[v].cost for v in above | below)
    assert net.cost(genotype) < a + b + stitch


def test_parents_stay_frozen_and_in_eval_mode(net):
    net.train()
    assert not any(module.training for module in net.nets.modules())
    trainable = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trainable == {f"stitches.{name}" for name, _ in net.stitches.named_parameters()}


@torch.no_grad()
def test_features_are_what_the_parents_compute_at_the_joined_nodes(net, images):
    features = net.features(images)
    for gene, value in enumerate(features):
        parent, node = net.node(gene)
        part = torch.fx.Graph()
        new: dict = {}
        for other in parent.graph.nodes:
            new[other] = part.node_copy(other, new.__getitem__)
            if other is node:
                break
        part.output(new[node])
        expected = torch.fx.GraphModule(parent.net, part)(net.preprocess(images))
        assert torch.equal(value, expected)


def test_a_cycle_is_refused(joined, model):
    net = joined(model("resnet8", 0), model("cnn", 1))
    first, *_, last = [pair for k, pair in enumerate(net.pairs) if net.layout(2 * k) == "NCHW"]
    with pytest.raises(ConfigError, match="close a cycle"):
        Supernetwork(net.parents, [StitchPoint(first.a, last.b), StitchPoint(last.a, first.b)])


@pytest.mark.parametrize("wrong", [[0, 1], "longer", "high"])
def test_wrong_genotypes_are_refused(net, wrong):
    length = len(net.alphabet)
    values = {"longer": np.zeros(length + 1, int), "high": np.full(length, 2)}.get(
        wrong if isinstance(wrong, str) else ""
    )
    with pytest.raises(ConfigError, match="switches"):
        net.set_genotype(wrong if values is None else values)
