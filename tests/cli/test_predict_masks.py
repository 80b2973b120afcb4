"""recombine predict with a network that labels pixels."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from torch import nn

from recombine.cli import classify, predict
from recombine.cli.networks import NamedNetwork
from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding
from recombine.models.model import Model, Preprocess
from recombine.models.segmentation import Segmenter
from recombine.patch import PatchedNetwork


class Pixels(nn.Module):
    """A backbone whose map is the image."""

    def forward(self, images):
        return {"out": images}


@pytest.fixture
def colours(monkeypatch):
    """A network of 32 px that calls every pixel by its strongest colour, as the command line opens it."""
    classifier = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(classifier.weight.data[:, :, 0, 0])
    net = Segmenter(Pixels(), nn.Sequential(classifier), 3)
    model = Model(net, Preprocess(32, [0, 0, 0], [1, 1, 1]), name="colours", classes=3, architecture="colours")
    names = {"base": ["red", "green", "blue"]}
    opened = NamedNetwork(model, model, PatchedNetwork(model), names, Decoding())
    monkeypatch.setattr(predict, "check_network", lambda options: None)
    monkeypatch.setattr(classify, "open_network", lambda options: opened)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["predict", *map(str, words)])
    predict.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(("height", "width"), [(40, 64), (90, 30), (32, 32)])
def test_masks_lie_on_their_images(colours, tmp_path, monkeypatch, capsys, height, width):
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    truth[height * 3 // 4 :] = 2
    Image.fromarray(np.eye(3, dtype=np.uint8)[truth] * 200 + 20).save(tmp_path / "a.png")
    said = run(monkeypatch, capsys, "--model", "x", "--json", "--top", 2, "--masks", tmp_path / "m", tmp_path / "a.png")
    written = Image.open(BytesIO((tmp_path / "m" / "a.png").read_bytes()))
    mask = np.array(written)
    assert written.mode == "P"  # with colours, and yet numbers
    assert mask.shape == truth.shape and (mask == truth).mean() > 0.93  # seams are soft: the network sees 32 px
    first, second = map(json.loads, said.splitlines())
    assert first["class"] == "red" and first["share"] == pytest.approx((mask == 0).mean())
    assert second["class"] == "green" and first["mask"].endswith("a.png")


def test_what_is_told_before_anything_is_written(colours, tmp_path, monkeypatch, capsys):
    for place in ("a.png", "b/a.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / place)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ConfigError, match="--masks FOLDER says where"):
        run(monkeypatch, capsys, "--model", "x", tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--masks would replace the image .*a\.png: it needs another folder"):
        run(monkeypatch, capsys, "--model", "x", "--masks", tmp_path, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="several images are called a"):
        run(monkeypatch, capsys, "--model", "x", "--masks", tmp_path / "m", tmp_path / "a.png", tmp_path / "b")
    assert not (tmp_path / "m").exists() and (tmp_path / "a.png").read_bytes() == before


def test_a_classifier_gives_no_masks(colours, tmp_path, monkeypatch, capsys):
    opened = classify.open_network(None)
    opened.model.net = nn.Flatten()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="--masks: colours classifies whole images"):
        run(monkeypatch, capsys, "--model", "x", "--masks", tmp_path / "m", tmp_path / "a.png")
