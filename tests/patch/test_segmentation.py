"""Patches in the backbone of a segmentation network: neutral at the start, and nothing else of the backbone trains."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import recombine.patch
from recombine import models
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.core.types import Batch
from recombine.models.freeze import digest
from recombine.patch import recipe
from recombine.patch.adapters import NormAdaptation
from recombine.patch.delta import Delta
from recombine.patch.dense.serialization import save_dense
from recombine.patch.dense.training import DenseTraining, patch_encoder
from recombine.patch.lora import LoRA
from recombine.patch.patched import HeadOnly
from recombine.run.launch import check, launch
from tests import composing

NODE = {"name": "small", "architecture": "lraspp", "backbone": "mobilenetv2_035", "weights": None, "size": 32}
NODE |= {"mean": [0.5] * 3, "std": [0.5] * 3}
METHODS = {
    "fc": partial(HeadOnly),
    "delta": partial(Delta, modules="all"),
    "base": partial(Delta, modules="all", weights="base", norm="none"),
    "bn_adapt": partial(NormAdaptation),
    "lora": partial(LoRA),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_patch_and_the_head_train_and_the_backbone_stays(name):
    model, plain = models.build(NODE, classes=3), models.build(NODE, classes=3)
    patch_encoder(model, METHODS[name], "task", 0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    neutral = name != "delta"
    with torch.no_grad():
        assert torch.allclose(model(images), plain(images), atol=1e-5) == neutral
    method = DenseTraining(model).train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.1)
    batch = Batch(images, torch.randint(0, 3, (2, 32, 32)), torch.arange(2))
    for _ in range(2):  # the first step of LoRA changes one of its two factors alone
        method(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    prefix = "net.net.backbone." if name == "fc" else "net.net.backbone.base."
    assert not [key for key in changed if key.startswith(prefix)]
    assert [key for key in changed if key.startswith("net.net.classifier.")]
    assert bool([key for key in changed if key.startswith("net.net.backbone.patch.")]) == (name not in ("fc", "base"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=finetune", "protocol=segmentation trains heads with a patch"),
        ("tasks=[digits]", "has a label for each image, and here a label for every pixel is needed"),
        ("model=resnet8", "classifies images, and the data have a label for every pixel"),
        ("model.backbone_weights=null", "protocol=segmentation freezes the backbone"),
    ],
)
def test_what_does_not_fit_is_said_first(tmp_path, data_root, override, message):
    place = {"data": data_root / "camvid_small", "weights": data_root / "weights/imagenet"}
    roots = [f"{key}_root={value}" for key, value in place.items()]
    cfg = composing.composed("patch", "experiment=patch/camvid_segmentation", *roots, override)
    assert any(message in text for text in check(recipe, cfg))


SMALL_NETWORKS = {
    "camvid_segmentation": ["model.backbone=mobilenetv2_035", "model.backbone_weights=timm:mobilenetv2_035"],
    "table7": ["model.backbone_weights=torchvision:resnet50"],
}


@pytest.mark.parametrize("method", ["fc", "delta_all"])
@pytest.mark.parametrize("experiment", ["camvid_segmentation", pytest.param("table7", marks=pytest.mark.slow)])
def test_two_steps(tmp_path, experiment, method):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\n")
    for k in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"data/images/{k}.png")
        Image.fromarray(rng.integers(0, 3, (40, 48), dtype=np.uint8)).save(tmp_path / f"data/masks/{k}.png")
    network = SMALL_NETWORKS[experiment][-1].partition("=")[2]
    source = models.build({"name": network, "weights": None}, classes=1000)
    models.save(source, tmp_path / "weights/source.safetensors", {})
    roots = [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    quick = ["loader.workers=0", "logger=none", "device=cpu", "batch_size=4", "engine.max_steps=2", "model.size=64"]
    quick += ["tasks=[{name:one,dataset:masks}]", *SMALL_NETWORKS[experiment][:-1], "model.backbone_weights=source"]
    launch(recipe, composing.composed("patch", f"experiment=patch/{experiment}", *roots, *quick, f"method={method}"))
    (row,) = read_rows(tmp_path / "output")
    assert row.status == "ok" and 0 <= row.metrics["miou"] <= 100
    assert (row.metrics["trainable_parameters"] > 0) == (method != "fc")
    assert row.cell["method"] == method.removesuffix("_all") and row.cell["task"] == "one"
    file = next(tmp_path.rglob("patches/one.safetensors"))
    assert row.metrics["patch_bytes"] == sum(value.nbytes for value in load_file(file).values())
    assert recombine.patch.read_card(file)["metrics"]["miou"] == row.metrics["miou"]


@pytest.mark.parametrize("name", ["fc", "delta", "bn_adapt"])
def test_a_file_holds_all_but_the_backbone(tmp_path, name):
    model = models.build(NODE, classes=3, seed=1)
    patch_encoder(model, METHODS[name], "task", 0)
    with torch.no_grad():
        for value in (value for value in model.parameters() if value.requires_grad):
            value.add_(0.1)
    model.eval()
    path = save_dense(model, tmp_path / "task.safetensors", name="task", class_names=["a", "b", "c"])
    base = models.build({**NODE, "size": 64}, classes=5, seed=1)  # another head and another size: the file has its own
    before = digest(base)
    network = recombine.attach(base, path)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(images, "task"), model(images), rtol=0, atol=0)
        assert network(images).shape[1] == 5
    assert network.list()["task"]["class_names"] == ["a", "b", "c"]
    assert network.restore() is base and digest(base) == before
    with pytest.raises(ConfigError, match=r"made for a backbone .* load the backbone the patch was trained on"):
        recombine.attach(models.build(NODE, classes=3, seed=2), path)
    with pytest.raises(ConfigError, match="is for the backbone of a network for segmentation"):
        recombine.attach(models.build("resnet8", classes=3), path)
