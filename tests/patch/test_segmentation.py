"""Patches in the backbone of a segmentation network: neutral at the start, and nothing else of the backbone trains."""

from functools import partial

import pytest
import torch

from recombine import models
from recombine.core.types import Batch
from recombine.patch.adapters import NormAdaptation
from recombine.patch.delta import Delta
from recombine.patch.lora import LoRA
from recombine.patch.patched import HeadOnly
from recombine.patch.segmentation import BackboneTraining, patch_backbone
from recombine.run.launch import check
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
    patch_backbone(model, METHODS[name], "task", 0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    neutral = name != "delta"
    with torch.no_grad():
        assert torch.allclose(model(images), plain(images), atol=1e-5) == neutral
    method = BackboneTraining(model).train()
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
        ("method=finetune", "protocol=segmentation trains a head with a patch"),
        ("tasks=[digits]", "has one label for each image, and masks are needed"),
        ("model=resnet8", "classifies images, and the data have a label for every pixel"),
        ("model.backbone_weights=null", "protocol=segmentation freezes the backbone"),
    ],
)
def test_what_does_not_fit_is_said_first(tmp_path, data_root, override, message):
    place = {"data": data_root / "camvid_small", "weights": data_root / "weights/imagenet"}
    roots = [f"{key}_root={value}" for key, value in place.items()]
    cfg = composing.composed("patch", "experiment=patch/camvid_segmentation", *roots, override)
    from recombine.patch import recipe

    assert any(message in text for text in check(recipe, cfg))
