"""Offspring by themselves: the same logits without the supernetwork, from a file, and what wrong files say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recombine import stitch
from recombine.core.errors import ConfigError
from recombine.stitch.ensemble import OutputEnsemble
from recombine.stitch.measuring import predict_networks
from recombine.stitch.recalibration import recalibrate
from recombine.stitch.search.space import references
from tests.stitch.test_evaluator import Labelled


def genotypes(net, count: int = 5, rate: float = 0.2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    genes = (rng.random((count, len(net.alphabet))) < rate).astype(np.int8)
    genes[:, -1] = rng.integers(3, size=count)
    return [*genes, *references(len(net.alphabet))]


@torch.no_grad()
def test_an_offspring_computes_what_the_supernetwork_does(net, images):
    for genotype in genotypes(net):
        net.set_genotype(genotype)
        model = stitch.export(net, genotype)
        assert torch.equal(model(images), net(images))


def test_an_offspring_holds_what_it_needs_and_nothing_else(net):
    a, b, both = references(len(net.alphabet))
    count = [sum(p.numel() for p in stitch.export(net, genotype).parameters()) for genotype in (a, b, both)]
    parents = [sum(p.numel() for p in parent.net.parameters()) for parent in net.parents]
    assert count == [*parents, sum(parents)]
    one = a.copy()
    one[0] = 1
    stitched = stitch.export(net, one)
    names = {name.partition(".")[0] for name, _ in stitched.net.named_parameters()}
    assert names == {"a", "b", "stitches"}


def test_an_offspring_is_a_copy(net, images):
    genotype = genotypes(net)[0]
    with torch.no_grad():
        model = stitch.export(net, genotype)
        before = model(images)
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(model(images), before)


@torch.no_grad()
def test_files_give_the_same_network_without_its_parents(net, images, tmp_path):
    for k, genotype in enumerate(genotypes(net)):
        net.set_genotype(genotype)
        path = stitch.save(net, genotype, tmp_path / f"{k}.safetensors", name="child", metrics={"accuracy": 1.0})
        model = stitch.load(path)
        assert torch.equal(model(images), net(images))
        assert model.name == "child" and model.classes == 4
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    card = stitch.read_card(path)
    assert card["metrics"] == {"accuracy": 1.0} and [p["name"] for p in card["parents"]] == ["resnet8", "cnn"]


@torch.no_grad()
def test_parents_that_normalise_differently_survive_a_file(joined, model, images, tmp_path):
    net = joined(model("resnet8", 0), model("cnn", 1, mean=[0.2, 0.4, 0.6], std=[0.5, 0.2, 0.3]))
    genotype = references(len(net.alphabet))[2]
    genotype[3] = 1
    net.set_genotype(genotype)
    loaded = stitch.load(stitch.save(net, genotype, tmp_path / "o.safetensors"))
    assert torch.equal(loaded(images), net(images))


@torch.no_grad()
@pytest.mark.parametrize("mean", ["logits", "probs"])
def test_other_ensembles_survive_a_file(net, images, tmp_path, mean):
    net.ensemble = OutputEnsemble(mean)
    net.ensemble.share.fill_(0.7)
    genotype = references(len(net.alphabet))[2]
    genotype[3] = 1
    net.set_genotype(genotype)
    loaded = stitch.load(stitch.save(net, genotype, tmp_path / "o.safetensors"))
    assert torch.equal(loaded(images), net(images))


@torch.no_grad()
def test_statistics_of_batch_norms_are_estimated_behind_stitches_alone(net, images, tmp_path):
    """They are those of torch's update_bn on the layers behind a stitch; the others keep their parents'."""
    batches = [images[:3], images[3:]]
    for genotype in genotypes(net):
        model = stitch.export(net, genotype)
        behind = [name for name, _ in recalibrate(net, net.plan([net.phenotype(genotype)]), batches).layers.items()]
        again = stitch.export(net, genotype, calibration=batches)
        changed = {
            name.rpartition(".")[0]
            for name, value in again.net.named_buffers()
            if not torch.equal(value, model.net.get_buffer(name))
        }
        assert len(changed) == len(behind)
        layers = {name: part for name, part in model.net.named_modules() if isinstance(part, nn.BatchNorm2d)}
        for name, part in layers.items():
            if name in changed:
                part.reset_running_stats()
                part.momentum = None
                part.train()
        for batch in batches:
            model(batch)
        for name in changed:
            for key in ("running_mean", "running_var"):
                torch.testing.assert_close(again.net.get_buffer(f"{name}.{key}"), model.net.get_buffer(f"{name}.{key}"))
        path = stitch.save(net, genotype, tmp_path / "o.safetensors", trained=again)
        (found,) = predict_networks(
            net, genotype[None], Labelled(images, 4), precision="fp32", eval_batch_networks=1, calibration=batches
        )
        torch.testing.assert_close(stitch.load(path)(images), found.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_offspring_is_a_parent_of_another_one(net, model, joined, images, tmp_path):
    """Three networks in one: its file needs none of them, nor that of its parent."""
    first = references(len(net.alphabet))[2]
    first[3] = 1
    child = stitch.load(stitch.save(net, first, tmp_path / "child.safetensors", name="child"))
    again = joined(child, model("resnet8", 5))
    genotype = references(len(again.alphabet))[2]
    again.set_genotype(references(len(again.alphabet))[0])
    assert torch.equal(again(images), child(images))
    genotype[[2, 9]] = 1
    again.set_genotype(genotype)
    path = stitch.save(again, genotype, tmp_path / "grandchild.safetensors")
    (tmp_path / "child.safetensors").unlink()
    assert torch.equal(stitch.load(path)(images), again(images))
    assert stitch.read_card(path)["parents"][0]["options"]["parents"] == ["resnet8", "cnn"]


def test_cards_are_told_from_other_files(net, tmp_path):
    path = stitch.save(net, genotypes(net)[0], tmp_path / "o.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert stitch.offspring_card(path)["name"] == "offspring"
    assert stitch.offspring_card(tmp_path / "other.safetensors") is None
    assert stitch.offspring_card("resnet20") is None
    with pytest.raises(ConfigError, match="offspring file is needed"):
        stitch.read_card(tmp_path / "other.safetensors")


def changed(
    net, tmp_path, change, metadata=lambda card: {"kind": "offspring", "format": "1", "card": json.dumps(card)}
):
    """A file whose card and weights are not as they were written."""
    path = stitch.save(net, genotypes(net)[0], tmp_path / "o.safetensors")
    card, state = stitch.read_card(path), stitch.export(net, genotypes(net)[0]).net.state_dict()
    change(card, state)
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata(card))
    return path


def first_format(card):
    """The metadata that version 0.1 wrote."""
    return {"offspring": json.dumps({"format": 1, **card})}


@torch.no_grad()
def test_files_of_the_first_version_stay_readable(net, images, tmp_path):
    net.set_genotype(genotypes(net)[0])
    path = changed(net, tmp_path, lambda card, state: None, first_format)
    assert torch.equal(stitch.load(path)(images), net(images))
    assert stitch.offspring_card(path)["format"] == 1


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        (lambda card, state: card.pop("output"), None),
        (lambda card, state: card.update(format=2), None),
        (lambda card, state: card.update(format=2), first_format),
        (lambda card, state: None, lambda card: {"kind": "offspring", "format": "2", "card": json.dumps(card)}),
        (lambda card, state: card["on"][0].update(a="elsewhere"), None),
        (lambda card, state: card["parents"].pop(), None),
        (lambda card, state: card["parents"][0].update(architecture="resnet9000"), None),
        (lambda card, state: state.pop(next(iter(state))), None),
        (lambda card, state: card.update(output=7), None),
    ],
)
def test_damaged_files_are_refused(net, tmp_path, change, metadata):
    path = changed(net, tmp_path, change, metadata) if metadata else changed(net, tmp_path, change)
    with pytest.raises(ConfigError, match="damaged"):
        stitch.load(path)


def test_cut_off_files_are_refused(net, tmp_path):
    path = stitch.save(net, genotypes(net)[0], tmp_path / "o.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be read"):
        stitch.load(path)
