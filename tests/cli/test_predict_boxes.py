"""recombine predict with a network that finds objects."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recombine.cli import classify, predict
from recombine.cli.networks import NamedNetwork
from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding
from recombine.models.detection import DETECTIONS, Detector
from recombine.models.model import Model, Preprocess
from recombine.patch import PatchedNetwork


class White(Detector):
    """Finds what is white, with certainty, and less surely its left half."""

    def forward(self, images):
        rows = images.new_full((len(images), DETECTIONS, 6), -1.0)
        for row, image in zip(rows, images, strict=True):
            places = (image[0] > 0.7).nonzero()
            top, left = places.amin(0).tolist()
            bottom, right = (places.amax(0) + 1).tolist()
            row[0] = torch.tensor([left, top, (left + right) / 2, bottom, 0.4, 0])
            row[1] = torch.tensor([left, top, right, bottom, 0.9, 1])
        return rows


@pytest.fixture
def model(monkeypatch):
    """A network of 64 px, as the command line opens it."""
    net = White(nn.Conv2d(3, 3, 1), nn.Identity(), nn.Identity(), 2)
    model = Model(net, Preprocess(64, [0, 0, 0], [1, 1, 1]), name="white", classes=2, architecture="white")
    opened = NamedNetwork(model, model, PatchedNetwork(model), {"base": ["half", "whole"]}, Decoding())
    monkeypatch.setattr(predict, "check_network", lambda options: None)
    monkeypatch.setattr(classify, "open_network", lambda options: opened)
    return model


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["predict", "--model", "x", *map(str, words)])
    predict.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(("height", "width"), [(128, 256), (200, 80), (64, 64)])
def test_boxes_lie_on_their_images(model, tmp_path, monkeypatch, capsys, height, width):
    pixels = np.full((height, width, 3), 60, np.uint8)
    box = [width // 4, height // 4, width // 2, 3 * height // 4]
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    said = run(monkeypatch, capsys, "--json", "--score", 0.3, "--boxes", tmp_path / "b", tmp_path / "a.png")
    best, second = map(json.loads, said.splitlines())
    assert (best["class"], second["class"]) == ("whole", "half") and best["score"] == pytest.approx(0.9)
    assert best["box"] == pytest.approx(box, abs=max(height, width) / 64)
    drawn = np.asarray(Image.open(tmp_path / "b" / "a.png"))
    assert drawn.shape == pixels.shape and (drawn != pixels).any()
    assert len(run(monkeypatch, capsys, "--json", tmp_path / "a.png").splitlines()) == 1, "from 0.5 on, and no picture"
    assert "left, top, right, bottom" in run(monkeypatch, capsys, tmp_path / "a.png")


def test_what_does_not_fit_is_said(model, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="--masks: white finds objects and gives no masks"):
        run(monkeypatch, capsys, "--masks", tmp_path / "m", tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--boxes would replace the image .*a\.png: it needs another folder"):
        run(monkeypatch, capsys, "--boxes", tmp_path, tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--score 2.0: a number from 0 to 1"):
        run(monkeypatch, capsys, "--score", 2, tmp_path / "a.png")
