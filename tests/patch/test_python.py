"""Patches from Python, as a user of peft or timm has them: made, trained, kept, put on, merged."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from recombine import patch
from recombine.core.errors import ConfigError
from tests.networks import shaken

FOLDS = ("fc", "bn_adapt", "parallel_adapter", "series_adapter", "lora", "ssf")


def timm_network(name="resnet10t", classes=7, **options):
    torch.manual_seed(0)
    return shaken(timm.create_model(name, num_classes=classes, **options)).eval()


def trained(network, method, **options):
    """A patch whose every tensor matters, as after a training."""
    torch.manual_seed(1)
    patched = patch.create(network, method, classes=4, size=64, **options)
    for value in shaken(patched.patch).parameters():
        value.data += 0.05 * torch.randn_like(value)
    return patched.eval()


@pytest.fixture
def batch():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", FOLDS)
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
def test_a_merged_network_is_the_patched_one_without_a_patch(batch, method, name):
    if (name, method) in {("mobilenetv2_035", "parallel_adapter"), ("mobilenetv2_035", "series_adapter")}:
        pytest.skip("its 3x3 convolutions are grouped: see below")
    network = timm_network(name)
    patched = trained(network, method)
    merged = patch.merge(patched)
    with torch.no_grad():
        wanted = patched(batch)
        assert wanted.std() > 0.01
        torch.testing.assert_close(merged(batch), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert type(merged) is type(network) and merged.num_classes == 4
    assert merged.get_classifier().out_features == 4 and all(p.requires_grad for p in merged.parameters())
    assert not {id(p) for p in merged.parameters()} & {id(p) for p in patched.parameters()}


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("resnet10t", "delta", "Delta is more than weights .* recombine export"),
        ("mobilenetv2_035", "parallel_adapter", "grouped convolution"),
        ("nf_regnet_b0", "lora", "LoRA cannot be merged into NormFreeNet: its layers change their weights"),
    ],
)
def test_what_cannot_be_merged_is_refused(name, method, message):
    with pytest.raises(ConfigError, match=message):
        patch.merge(trained(timm_network(name), method))


def test_fit_trains_the_patch_alone_and_goes_on_from_a_file(batch, tmp_path):
    network = timm_network()
    before = copy.deepcopy(network.state_dict())
    labels = torch.arange(4)
    patched = patch.create(network, "lora", classes=4, size=64, rank=2)
    with torch.no_grad():
        losses = [float(F.cross_entropy(patched.eval()(batch), labels))]
    for _ in range(2):
        patched = patch.fit(patched, [(batch, labels)] * 2, epochs=5, lr=0.01)
        with torch.no_grad():
            losses.append(float(F.cross_entropy(patched(batch), labels)))
        patch.save(patched, tmp_path / "p.safetensors", name="p", class_names=list("abcd"), size=64)
        patched = patch.load(network, tmp_path / "p.safetensors")
    assert losses[0] > losses[1] > losses[2]
    assert patched.restore() is network
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_comes_back_with_the_last_of_its_patches():
    network = timm_network().train()
    first, second = (patch.create(network, method, classes=3) for method in ("lora", "fc"))
    twin = copy.deepcopy(first)
    for patched, held in ((first, True), (second, False), (second, False)):
        assert patched.restore() is network
        assert network.training != held
        assert all(parameter.requires_grad != held for parameter in network.parameters())
    assert not twin.base.training
    assert not patch.create(network, "fc", classes=3).base.training


def test_a_model_comes_back_with_its_preprocessing(resnet20, images):
    patched = patch.create(resnet20, "fc", classes=3)
    assert patched.restore() is resnet20 and patched(images).shape == (6, 3)


def test_names_and_options_are_those_of_the_command_line():
    network = timm_network()
    assert patch.create(network, "lora_1", classes=3).patch.options == {"rank": 1, "alpha": None}
    assert patch.create(network, "delta_2", classes=3, weights="learned").patch.block_names == ["layer3.0", "layer4.0"]
    for method, options, message in (
        ("lore", {}, "no patch method 'lore'; did you mean 'lora'"),
        ("paint", {}, "paint changes the network"),
        ("lora", {"ranks": 2}, "unknown setting method.ranks"),
        ("lora", {"rank": 0}, "method.rank=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            patch.create(network, method, classes=3, **options)
    with pytest.raises(ConfigError, match="classes=-1") as error:
        patch.create(network.half(), "lora", classes=-1, rank=0)
    assert len(error.value.problems) == 3


@pytest.fixture
def system(tmp_path):
    """A network with a patch of each of three kinds, two of which leave it at the same place."""
    network = timm_network()
    for name, method, options in (("a", "delta", {}), ("b", "delta", {"weights": "learned"}), ("c", "lora", {})):
        patched = trained(network, method, **options)
        patch.save(patched, tmp_path / f"{name}.safetensors", name=name, class_names=list("wxyz"), size=64)
        patch.attach(network, tmp_path / f"{name}.safetensors")
    attached = patch.attach(network, tmp_path / "a.safetensors")
    return attached.attach(tmp_path / "b.safetensors").attach(tmp_path / "c.safetensors")


@torch.no_grad()
def test_each_image_of_a_batch_may_have_its_own_task(system, batch):
    tasks = ["b", None, "a", "b"]
    for image, task, logits in zip(batch, tasks, system(batch, tasks), strict=True):
        torch.testing.assert_close(logits, system(image[None], task)[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="2 tasks were given for 4 images"):
        system(batch, ["a", "b"])
    with pytest.raises(ConfigError, match="no patch for task 'd'"):
        system(batch, ["a", "b", "c", "d"])


@torch.no_grad()
def test_patches_of_the_same_classes_may_be_weighed(system, batch):
    a, b, c = (system(batch, name) for name in "abc")
    torch.testing.assert_close(system(batch, {"a": 0.7, "b": 0.2, "c": 0.1}), 0.7 * a + 0.2 * b + 0.1 * c)
    torch.testing.assert_close(system(batch, {"a": 3, "c": 1}), 0.75 * a + 0.25 * c)
    assert torch.equal(system(batch, {"b": 2.0, "a": 0.0}), b)
    for weights in ({"a": 0.0}, {"a": -1.0, "b": 3.0}, {"a": float("nan")}, {"a": float("inf")}, {}):
        with pytest.raises(ConfigError, match="weights of patches are needed"):
            system(batch, weights)
    system._cards["b"]["class_names"] = list("abcd")
    with pytest.raises(ConfigError, match=r"different classes cannot be averaged \(a 4, b 4\)"):
        system(batch, {"a": 0.5, "b": 0.5})
    with pytest.raises(ConfigError, match="no patch for task 'd'"):
        system(batch, {"a": 0.5, "d": 0.5})


@torch.no_grad()
def test_all_tasks_share_what_comes_before_them(system, batch):
    calls = []
    system.base.conv1[0].register_forward_hook(lambda *_: calls.append(1))
    found = system.predict_all(batch)
    assert len(calls) == 2  # once for both delta-networks, and for LoRA, which starts at the first layer
    assert list(found) == ["a", "b", "c"]
    for images in (batch, batch[..., :48, :48]):  # the second of another size than the patches were made at
        for task, logits in system.predict_all(images).items():
            assert torch.equal(logits, system(images, task))


@torch.no_grad()
def test_a_model_stays_a_model_when_merged(resnet20, images, tmp_path):
    patched = patch.create(resnet20, "ssf", classes=4)
    shaken(patched.patch)
    patch.save(patched.eval(), tmp_path / "p.safetensors", name="letters", class_names=list("abcd"), size=32)
    system = patch.attach(resnet20, tmp_path / "p.safetensors")
    merged = system.merge("letters")
    torch.testing.assert_close(merged(images), system(images, "letters"), rtol=1e-3, atol=1e-3)
    assert merged.classes == 4 and merged.class_names == list("abcd") and system.restore() is resnet20


def test_another_patch_of_the_same_kind_is_swapped_in_without_compiling_again(batch, tmp_path):
    network = timm_network()
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        patched = trained(network, "delta")
        with torch.no_grad():
            patched.patch.head.bias += seed
        patch.save(patched, file, name=file.stem, class_names=list("abcd"), size=64)
    patched, count = patch.load(network, files[0]), []
    compiled = torch.compile(patched, backend=lambda graph, _: count.append(1) or graph.forward)
    with torch.no_grad():
        first = compiled(batch)
        once = len(count)
        patched.patch.load_state_dict(load_file(files[1]))
        torch.testing.assert_close(compiled(batch), first + 1)
    assert len(count) == once > 0
