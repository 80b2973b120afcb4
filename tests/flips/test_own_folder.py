"""Networks of ImageNet, or of any other classes, compared on somebody's own folder in one attempt."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.data import open_data
from recombine.flips.candidates import choose_models, open_model
from recombine.flips.outputs import RestrictedOutputs, match_outputs
from tests.leaks import of_test, spoil

NAMES = ["tench", "golden retriever", "church", "crane", "crane", "pier", "bee"]


@pytest.fixture
def place(tmp_path):
    """Three classes of the network's seven, in another order and in folder spelling; and the network."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("Golden_Retriever", "bee", "tench")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(80 * k, 80 * k + 90, (32, 32, 3), np.uint8)).save(
                tmp_path / "set" / name / f"{i}.png"
            )
    for seed in (0, 1):
        model = zoo.build({"name": "lenet5"}, classes=len(NAMES), seed=seed)
        zoo.save(model, tmp_path / "weights" / f"net{seed}.safetensors", {"class_names": NAMES})
    return tmp_path


def opened(place, **options):
    where = {"data_root": place, "cache_root": place / "cache", "seed": 0, "device": "cpu"}
    return open_data({"name": "set", "source": "folder", **options}, loader={"kind": "torch", "workers": 0}, **where)


def test_classes_are_found_by_name(place):
    data = opened(place)
    assert match_outputs(NAMES, 7, data) == {0: 1, 1: 6, 2: 0}
    assert match_outputs(None, 7, data) is None and match_outputs(None, 3, data) == {0: 0, 1: 1, 2: 2}
    logits = RestrictedOutputs(torch.nn.Identity(), {0: 1, 1: 6, 2: 0}, 3)(torch.arange(14.0).view(2, 7))
    assert logits.tolist() == [[1, 6, 0], [8, 13, 7]]


def test_a_name_that_two_outputs_have_is_not_guessed(place):
    (place / "set/bee").rename(place / "set/crane")
    assert match_outputs(NAMES, 7, opened(place)) is None


@pytest.mark.parametrize(
    "label_map", [{"Golden_Retriever": 1, "bee": 6, "tench": 0}, [1, 6, 0], {"0": 1, "1": 6, "2": 0}]
)
def test_a_label_map_says_which_outputs_are_meant(place, label_map):
    data = opened(place, label_map=label_map)
    assert data.classes == 7 and match_outputs(None, 7, data) == {k: k for k in range(7)}  # as many: all are possible
    outputs = match_outputs(None, 9, data)
    assert outputs == {0: 0, 1: 1, 6: 6}
    logits = RestrictedOutputs(torch.nn.Identity(), outputs, 7)(torch.zeros(1, 9))
    assert logits.isfinite().tolist() == [[True, True, False, False, False, False, True]]


def config(place, **options):
    roots = {"weights_root": str(place / "weights"), "seed": 0, "eval_batch_size": 16, "exclude": []}
    options = {"models": ["net0", "net1"], "fit_heads": False, "engine": {"precision": "fp32"}, **roots, **options}
    return OmegaConf.create(options)


def test_networks_of_more_classes_choose_among_those_of_the_data(place):
    data, cfg = opened(place), config(place)
    (batch,) = data.loader("train", 64, train=False).epoch(0)
    whole = zoo.build("net0", weights_root=place / "weights")
    for node in choose_models(cfg, data).values():
        model = open_model(cfg, data, node)
        assert model.classes == 3 and model(batch.images).shape == (len(batch.images), 3)
    assert torch.equal(open_model(cfg, data, "net0")(batch.images), whole(batch.images)[:, [1, 6, 0]])
    assert open_model(cfg, data, "net0", copy=True)(batch.images).shape[1] == 3
    data.close()


def test_heads_are_fitted_where_asked_to_training_images(place, monkeypatch):
    for name in ("net0", "net1"):
        model = zoo.build(name, weights_root=place / "weights")
        zoo.save(model, place / "weights" / f"{name}.safetensors", {})
    data = opened(place)
    with pytest.raises(ConfigError, match=r"net0 has 7 classes, dataset set-\w+ has 3(.|\n)*fit_heads=true"):
        choose_models(config(place), data)
    cfg = config(place, fit_heads=True)
    (batch,) = data.loader("train", 64, train=False).epoch(0)
    for node in choose_models(cfg, data).values():
        model = open_model(cfg, data, node)
        assert model.classes == 3 and (model(batch.images).argmax(1) == batch.labels).float().mean() > 0.9
        with monkeypatch.context() as patched:
            spoil(patched, of_test)
            assert open_model(cfg, data, node).digest() == model.digest()
    data.close()
