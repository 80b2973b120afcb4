"""Networks of timm with two classifiers, or of one fixed input size, in every role."""

from types import SimpleNamespace

import pytest
import timm
import torch
from digits import compose_config, open_digits, run_rows

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.engine.logistic_regression import logistic_regression
from recombine.flips.heads import find_heads, fit_heads
from recombine.transfer import networks, recipe
from tests.leaks import of_test, spoil

SMALL = {"weights": None, "size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}


def transformer(kind="vit_tiny_patch16_224", classes=10):
    return zoo.build({"name": f"timm:{kind}", **SMALL}, classes=classes)


def test_both_classifiers_of_a_distilled_network_are_fitted(folder):
    model = transformer("deit_tiny_distilled_patch16_224")
    data = open_digits(folder)
    loader = data.loader("train", 300, train=False)
    for name in ("head", "head_dist"):
        torch.nn.init.zeros_(getattr(model.net, name).weight)  # as some networks begin: their logits tell nothing
    before = {name: getattr(model.net, name).weight.clone() for name in ("head", "head_dist")}
    fit_heads(model, loader)
    batch = next(loader.epoch(0))
    data.close()
    with torch.no_grad():
        tokens = model.net.forward_features(model.preprocess(batch.images))[:, :2]
        for place, (name, old) in enumerate(before.items()):
            head = getattr(model.net, name)
            assert not torch.equal(head.weight, old)
            right = (head(tokens[:, place]).argmax(1) == batch.labels).float().mean()
            assert right > 0.5, f"{name} alone knows digits from what enters it"


def test_classifiers_are_fitted_to_training_images_alone(folder, monkeypatch):
    zoo.save(zoo.build({"name": "lenet5"}, classes=7, seed=3), folder / "weights" / "seven.safetensors", {})
    cfg, data, run = compose_config(folder, "fit_heads=true"), open_digits(folder), SimpleNamespace(device="cpu")
    fitted = networks.open_network(cfg, run, data, {"name": "seven"})
    spoil(monkeypatch, of_test)
    again = networks.open_network(cfg, run, data, {"name": "seven"})
    data.close()
    assert fitted.classes == 10 and fitted.digest() == again.digest()


def test_features_that_hardly_vary_do_not_decide():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    features = torch.randn(60, 4, generator=random)
    features[:, 0] += 3 * labels
    features[:, 3] = 0
    features[7, 3] = 1e-5  # of one image
    weight, bias = logistic_regression(features, labels, 2)
    seen_elsewhere = features.clone()
    seen_elsewhere[:, 3] = torch.rand(60, generator=random)  # as on images of another kind
    right = ((seen_elsewhere @ weight.T + bias).argmax(1) == labels).float().mean()
    assert right > 0.9 and weight[:, 3].abs().max() < weight[:, 0].abs().max()


def test_a_network_whose_logits_are_made_in_another_way_is_refused():
    model = zoo.build({"name": "cnn", "widths": [4, 4, 4, 4]}, classes=10)
    images = torch.randint(0, 255, (2, 3, 28, 28), dtype=torch.uint8)
    assert find_heads(model, images) == [model.head]
    model.net.register_forward_hook(lambda net, inputs, logits: logits.relu_())
    with pytest.raises(ConfigError, match=r"fit_heads=true cannot fit the classifier of cnn.*freeze=true"):
        find_heads(model, images)


def test_a_teacher_of_fixed_size_sees_the_students_crop_at_its_own_size(folder):
    student = zoo.build("narrow", weights_root=folder / "weights")
    fixed = transformer()
    seen = networks.match_preprocessing(fixed, student)
    assert (seen.size, seen.crop_pct) == (32, student.crop_pct)
    free = zoo.build("wide", weights_root=folder / "weights")
    assert networks.match_preprocessing(free, student).size == student.size
    zoo.save(transformer(), folder / "weights" / "fixed.safetensors", {})
    options = ["teacher.name=fixed", "teacher_preprocessing=student", "engine.max_steps=1", "dataset.test_fraction=0.1"]
    (row,) = run_rows(recipe, compose_config(folder, *options))
    assert row.status == "ok"


def test_the_cards_line_loads_a_resized_network_in_plain_timm(tmp_path):
    model = transformer()
    path = zoo.save(model, tmp_path / "student.safetensors", {})
    line = networks.loading_code(model, str(path))
    assert "img_size=32" in line and "num_classes=10" in line and "depth=1" in line
    net = eval(line, {"timm": timm}).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(net(model.preprocess(images)), model(images))
        torch.testing.assert_close(zoo.build(str(path))(images), model(images))


def test_networks_of_the_hub_are_timms_too():
    model = transformer()
    model.architecture, model.options = "hf-hub:somebody/network", {}
    expected = "timm.create_model('hf-hub:somebody/network', num_classes=10, checkpoint_path='a.safetensors')"
    assert networks.loading_code(model, "a.safetensors") == expected
