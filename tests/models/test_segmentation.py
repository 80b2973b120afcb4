"""Segmentation networks: what torchvision computes, from its files, with any number of classes."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from recombine import models
from recombine.core.errors import ConfigError

NAMES = ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"]  # fcn_resnet50 is built in the same way


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torchvision_and_its_files_fit(tmp_path, name):
    torch.manual_seed(0)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **aux).eval()
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    node = {"name": f"torchvision:{name}", "weights": "net.safetensors", "size": 64, "mean": 0.0, "std": 1.0}
    model = models.build(node, weights_root=tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model.net(images / 255), theirs(images / 255)["out"]) and model.classes == 5
        models.save(model, tmp_path / "again.safetensors", {})
        again = models.build("again.safetensors", weights_root=tmp_path)
        assert torch.equal(again(images), model(images))
        other = models.build(node, classes=3, weights_root=tmp_path)
        assert other(images).shape == (2, 3, 64, 64) and "new head of 3 classes" in other.tag
        assert all(torch.equal(value, theirs.backbone.state_dict()[key]) for key, value in backbone(other).items())


def backbone(model):
    return model.net.backbone.state_dict()


def test_a_backbone_starts_with_a_classifiers_layers(tmp_path):
    torch.manual_seed(0)
    import timm

    source = timm.create_model("mobilenetv2_050")
    save_file(source.state_dict(), tmp_path / "timm_net.safetensors")
    node = {"name": "small", "architecture": "lraspp", "backbone": "mobilenetv2_050", "weights": None}
    node |= {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    trained = {"name": "timm:mobilenetv2_050", "weights": "timm_net.safetensors"}
    models.save(models.build(trained, weights_root=tmp_path), tmp_path / "source.safetensors", {})
    model = models.build({**node, "backbone_weights": "source"}, classes=4, weights_root=tmp_path)
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone(model).items())
    bare = models.build(node, classes=4)
    assert not torch.equal(bare.net.backbone.conv_stem.weight, model.net.backbone.conv_stem.weight)
    with pytest.raises(ConfigError, match="backbone_weights=source has not the layers of the backbone"):
        models.build(
            {**node, "backbone": "mobilenetv2_100", "backbone_weights": "source"}, classes=4, weights_root=tmp_path
        )


def test_networks_of_the_other_kind_are_refused():
    digits, camvid = {"task": "classification"}, {"task": "segmentation"}
    dense, plain = (
        {"name": f"torchvision:{n}", "weights": None} for n in ("lraspp_mobilenet_v3_large", "mobilenet_v3_large")
    )
    assert models.check(dense, **camvid) == models.check(plain, **digits) == []
    assert "classifies every pixel" in models.check(dense, **digits)[0]
    assert "classifies images" in models.check(plain, **camvid)[0]
