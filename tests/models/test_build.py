"""Names, nodes and what is said about the wrong ones."""

import inspect
import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from recombine.core.builds import load_target
from recombine.core.errors import ConfigError
from recombine.engine.method import Method
from recombine.models import Model, build, check, describe, save, summary
from recombine.models.architectures import BUILT_IN
from recombine.models.libraries import task_of
from recombine.models.model import Preprocess, find_head
from recombine.models.registry import config_file, config_names, training_hint
from recombine.models.resolve import locate
from recombine.models.settings import PreprocessSettings

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def random_cnn() -> Model:
    return build("cnn", classes=10, seed=3)


def test_random_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build("cnn", classes=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.digest() == same.digest() != other.digest()
    assert one.tag == "random"


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_named_after_its_file_and_checks(name, tmp_path):
    config = yaml.safe_load(config_file(name).read_text())
    assert config["name"] == name
    task = task_of(config["architecture"]) or "classification"
    problems = check({"name": name, "weights": None}, weights_root=tmp_path, task=task)
    if start := config.get("backbone_weights"):  # named by the config, and not there
        told = (f"no weights for model {start}: looked for", f"no weights of {start}: HF_HUB_OFFLINE is set")
        assert len(problems) == 1 and problems[0].startswith(told)
    else:
        assert problems == []


def test_any_timm_name():
    model = build({"name": "timm:resnet10t", "weights": None}, classes=1000)
    config = timm.get_pretrained_cfg("resnet10t")
    assert (model.size, model.crop_pct, model.interpolation) == (176, config.crop_pct, config.interpolation)
    assert (model.mean, model.std) == (list(config.mean), list(config.std))
    plain = timm.create_model("resnet10t").eval()
    plain.load_state_dict(model.net.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain(model.preprocess(IMAGES)))
        features = plain.forward_head(plain.forward_features(model.preprocess(IMAGES)), pre_logits=True)
        assert torch.equal(model.features(IMAGES), features)


def test_any_torchvision_name():
    model = build({"name": "torchvision:mobilenet_v3_small", "weights": None}, classes=12)
    plain = torchvision.models.mobilenet_v3_small(num_classes=12).eval()
    plain.load_state_dict(model.net.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain(model.preprocess(IMAGES)))
    assert (model.size, model.canvas, model.classes) == (224, 256, 12)


def test_a_transformer_takes_the_asked_size():
    model = build({"name": "timm:vit_tiny_patch16_224", "weights": None, "size": 64, "depth": 2}, classes=3)
    assert model(IMAGES).shape == (4, 3)
    assert model.size == 64


def test_options_of_the_architecture_stand_in_the_node():
    model = build({"name": "resnet20", "weights": None, "width": 4, "mean": 0.5}, classes=10)
    assert model.net.conv1.out_channels == 4
    assert model.mean == [0.5, 0.5, 0.5]
    with pytest.raises(ConfigError, match=r"no option 'widht'; did you mean 'width'"):
        build({"name": "resnet20", "weights": None, "widht": 4}, classes=10)


def test_a_timm_checkpoint_in_weights_root_is_found_by_name(tmp_path):
    plain = timm.create_model("resnet10t").eval()
    save_file(plain.state_dict(), tmp_path / "resnet10t-0123abcd.safetensors")
    model = build("resnet10t", weights_root=tmp_path)
    assert model.tag == "resnet10t-0123abcd.safetensors"
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain(model.preprocess(IMAGES)))
    save_file(plain.state_dict(), tmp_path / "resnet10t-0123abce.safetensors")
    with pytest.raises(ConfigError, match=r"several checkpoints.*model\.weights="):
        build("resnet10t", weights_root=tmp_path)


def test_a_saved_model_is_found_by_name(random_cnn, tmp_path):
    random_cnn.name = "mine"
    save(random_cnn, tmp_path / "mine.safetensors", {})
    assert build("mine", weights_root=tmp_path).digest() == random_cnn.digest()
    save(random_cnn, tmp_path / "cnn.safetensors", {})
    assert build("cnn", weights_root=tmp_path).tag == "cnn.safetensors"
    assert build({"name": "cnn", "weights": None}, classes=10, weights_root=tmp_path).tag == "random"


def test_the_any_node_takes_whatever_a_name_may_be(random_cnn, tmp_path):
    node = OmegaConf.load(config_file("any"))
    OmegaConf.set_struct(node, True)
    node.name = str(save(random_cnn, tmp_path / "ten.safetensors", {}))
    assert build(node, weights_root=tmp_path / "elsewhere").digest() == random_cnn.digest()
    node.name, node.size = "ten", 64
    enlarged = build(node, weights_root=tmp_path)
    assert (enlarged.tag, enlarged.size) == ("ten.safetensors", 64)
    node.name, node.weights = "timm:resnet10t", None
    assert build(node, classes=3).size == 64


def test_a_saved_model_keeps_its_own_options(tmp_path):
    narrow = build({"name": "resnet8", "weights": None, "width": 8}, classes=10)
    save(narrow, tmp_path / "resnet8.safetensors", {})
    node = yaml.safe_load(config_file("resnet8").read_text()) | {"weights": "pretrained"}
    assert build(node, weights_root=tmp_path).digest() == narrow.digest()
    with pytest.raises(ConfigError, match="holds a cifar_resnet, but model cnn is a cnn"):
        locate({"name": "cnn", "weights": "resnet8.safetensors"}, tmp_path)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "cnn"},
        {"name": "timm:resnet10t"},
        {"name": "torchvision:squeezenet1_1"},
        {"name": "mobilenetv1_025_keras_r128"},
    ],
)
def test_another_number_of_classes_replaces_the_head(node, tmp_path):
    if node["name"].startswith("mobilenetv1"):
        model = build({**node, "weights": None}, classes=10)
    else:
        model = build({**node, "weights": None}, classes=10, seed=1)
    file = save(model, tmp_path / "ten.safetensors", {})
    seven = build(str(file), classes=7)
    assert seven.classes == 7
    assert seven(IMAGES).shape == (4, 7)
    assert seven.tag == "ten.safetensors + new head of 7 classes"
    head = find_head(seven.net, 7)
    body = {k: v for k, v in seven.net.state_dict().items() if not k.startswith(head)}
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in body.items())
    assert build(str(file), classes=10).tag == "ten.safetensors"


def test_problems_are_said_without_building(tmp_path):
    def said(model, **more):
        (problem,) = check(model, weights_root=tmp_path, **more)
        return problem

    assert "did you mean 'resnet20_optB_distiller'?" in said("resnet20_optB_distiler")
    assert "did you mean 'resnet18'" in said("timm:resnet1B")
    assert "no network 'resnet19'; did you mean 'resnet1" in said("torchvision:resnet19")
    assert "it has resnet18.a1_in1k" in said("timm:resnet18.nobody")
    assert "model.weights=null" in said("resnet20") and str(tmp_path) in said("resnet20")
    assert "there is no checkpoint" in said("lost.safetensors")
    assert "random weights" in said("cnn", frozen=True)
    assert "set model.size, model.mean, model.std" in said({"name": "x", "architecture": "cnn"})
    ready = {"name": "x", "size": 9, "mean": 0, "std": 1}
    assert "model.arch_def: a value is needed" in said({**ready, "architecture": "efficientnet"})
    assert "unknown architecture 'cnm'; did you mean 'cnn'" in said({**ready, "architecture": "cnm"})
    assert "no option 'sise'; did you mean 'size'" in said({"name": "cnn", "sise": 16})
    assert "HF_HUB_OFFLINE" in said("timm:resnet18.a1_in1k", classes=1000, frozen=True)
    assert "HF_HUB_OFFLINE" in said("torchvision:resnet18", classes=1000, frozen=True)
    assert "a name or a node" in said({"weights": None})


def test_a_frozen_model_must_have_the_datas_classes(random_cnn, tmp_path):
    save(random_cnn, tmp_path / "ten.safetensors", {})
    assert check("ten", weights_root=tmp_path, classes=10, frozen=True) == []
    assert check("ten", weights_root=tmp_path, classes=7) == []
    (problem,) = check("ten", weights_root=tmp_path, classes=7, frozen=True)
    assert "has 10 classes and the data 7" in problem and "dataset.label_map" in problem


def test_weights_that_cannot_be_downloaded_end_in_one_message():
    with pytest.raises(ConfigError, match=r"no weights of timm:resnet18.*put the file into weights_root"):
        build("timm:resnet18")


@pytest.mark.parametrize("built_in", [*BUILT_IN.values(), PreprocessSettings])
def test_declared_options_are_those_of_the_constructor(built_in):
    signature = inspect.signature(load_target("", built_in.constructs)).parameters
    taken = {name: parameter.default for name, parameter in signature.items() if name != "classes"}
    declared = {
        name: inspect.Parameter.empty if field.is_required() else field.default
        for name, field in built_in.model_fields.items()
    }
    assert declared == {name: list(value) if isinstance(value, tuple) else value for name, value in taken.items()}


def test_networks_of_our_own_are_checked_without_torch(random_cnn, tmp_path):
    file = save(random_cnn, tmp_path / "mine.safetensors", {})
    (tmp_path / "resnet20.th").write_bytes(b"weights")
    code = f"""
import sys
from recombine.models import check
for model in ("cnn", "resnet20", "mine", "{file}", {{"name": "cnn", "depth": 3}}, "lost.pt"):
    print(len(check(model, weights_root="{tmp_path}")), "torch" in sys.modules, "timm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [[n, "False", "False"] for n in "000011"]


class Pair(Method):
    """A student beside a frozen teacher with other preprocessing."""

    frozen = ("teacher",)

    def __init__(self, net: nn.Module, teacher: nn.Module) -> None:
        super().__init__(net)
        self.teacher = teacher


def test_a_model_gives_the_same_logits_in_every_role():
    teacher = build({"name": "resnet8", "weights": None, "mean": 0.5, "std": 0.25}, classes=10)
    student = build("cnn", classes=10)
    with torch.no_grad():
        alone = teacher(IMAGES)
        method = Pair(student, teacher).train()
        method.net(IMAGES)
        assert torch.equal(method.teacher(IMAGES), alone)
        assert torch.equal(Pair(teacher, student).eval().net(IMAGES), alone)


def test_summary_counts_what_torchvision_states():
    model = build({"name": "torchvision:resnet18", "weights": None}).requires_grad_(False)
    model.net.fc.requires_grad_(True)
    model.net.layer1.train()
    facts = summary(model)
    stated = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta
    assert facts["parameters"] == stated["num_params"]
    assert facts["macs"] / 1e9 == pytest.approx(stated["_ops"], abs=0.001)
    assert facts["trainable"] == 513_000
    assert model.net.layer1.training and not model.net.layer2.training


def test_describe_shows_the_measured_beside_the_claimed(random_cnn):
    table = describe([random_cnn], {"cnn": 12.345})
    assert [column.header for column in table.columns][-2:] == ["claimed top-1", "top-1 (test)"]
    assert list(table.columns[-1].cells) == ["12.35"]


def test_description_is_json(random_cnn):
    assert json.loads(json.dumps(random_cnn.description()))["options"] == {"widths": [32, 64, 128, 128]}
    assert random_cnn.preprocess.settings() == Preprocess(**random_cnn.preprocess.settings()).settings()


def test_only_networks_of_known_datasets_come_with_the_command_that_trains_them():
    assert "main_pretrain.py model=cnn dataset=digits seed=3" in training_hint("cnn-digits-s3", "weights")
    assert training_hint("cnn-mine-s3", "weights") == "" == training_hint("resnet20", "weights")
