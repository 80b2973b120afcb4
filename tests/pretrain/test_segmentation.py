"""Segmentation through main_pretrain.py: what is measured, and a network that learns a handful of real images."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from hydra import compose
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from recombine.cli.search_path import initialize_entry
from recombine.core.labels import IGNORE
from recombine.core.results import read_rows
from recombine.core.types import Batch
from recombine.engine.method import Supervised
from recombine.engine.metrics import IoU
from recombine.pretrain import recipe
from recombine.run.launch import check, launch


def batch_of(labels):
    return Batch(torch.zeros(len(labels), 3, *labels.shape[1:]), labels, torch.arange(len(labels)))


def test_iou_is_that_of_torchmetrics_and_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    metric, reference = IoU(6), MulticlassJaccardIndex(6, ignore_index=IGNORE)
    seen, said = [], []
    for _ in range(3):
        labels = torch.randint(0, 5, (2, 9, 7), generator=generator)  # class 5 never occurs, nor is it predicted
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
        logits = torch.randn(2, 6, 9, 7, generator=generator)
        logits[:, 5] = -9
        metric.update(logits, batch_of(labels))
        reference.update(logits.argmax(1), labels)
        seen.append(labels[labels != IGNORE])
        said.append(logits.argmax(1)[labels != IGNORE])
    found, truth, predicted = metric.compute(), torch.cat(seen), torch.cat(said)
    assert found["miou"] == pytest.approx(100 * float(reference.compute()), abs=1e-4)
    assert found["miou"] == pytest.approx(100 * jaccard_score(truth, predicted, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(100 * accuracy_score(truth, predicted))
    each = 100 * jaccard_score(truth, predicted, average=None, labels=range(5))
    assert np.allclose(metric.iou[:5], each) and np.isnan(metric.iou[5])


def test_the_loss_leaves_out_pixels_without_a_class():
    labels = torch.tensor([[[0, 2], [IGNORE, 1]]])
    logits = torch.randn(1, 3, 2, 2)

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return logits

    loss = Supervised(Fixed())(batch_of(labels)).loss
    by_hand = -sum(logits[0, :, y, x].log_softmax(0)[labels[0, y, x]] for y, x in ((0, 0), (0, 1), (1, 1))) / 3
    assert torch.allclose(loss, by_hand)
    assert torch.allclose(loss, F.cross_entropy(logits, labels, ignore_index=IGNORE))
    assert torch.equal(Supervised(Fixed())(batch_of(torch.full_like(labels, IGNORE))).loss, torch.tensor(0.0))


def compose_config(folder, *overrides):
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    settings = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu"]
    with initialize_entry("pretrain"):
        return compose("pretrain/pretrain", [*roots, *settings, *overrides])


TINY = [
    *("model=lraspp_mobilenetv2_tv", "model.backbone=mobilenetv2_035", "model.backbone_weights=null"),
    *("model.size=32", "dataset=masks", "batch_size=4", "engine.epochs=1"),
]


def write_scenes(folder):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("dark\nbright\n")
    for k in range(10):
        mask = rng.integers(0, 2, (4, 5)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(200 * mask).convert("RGB").save(folder / f"images/{k}.png")
        Image.fromarray(mask).save(folder / f"masks/{k}.png")


def test_a_run_gives_a_row_a_network_and_pictures(tmp_path):
    write_scenes(tmp_path / "data")
    launch(recipe, compose_config(tmp_path, *TINY))
    (row,) = read_rows(tmp_path / "output")
    assert 0 <= row.metrics["miou"] <= 100
    assert {"pixel_accuracy", "loss", "parameters"} <= row.metrics.keys() and len(row.series["miou"]) == 1
    (run,) = (tmp_path / "output/pretrain").iterdir()
    assert sorted(path.name for path in (run / "pictures").iterdir()) == ["0.png", "1.png"]
    with Image.open(run / "pictures/0.png") as picture:
        assert picture.size[0] == 3 * 32
    assert any("test/miou" in json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert len(list((tmp_path / "weights").iterdir())) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=cnn", "dataset=masks"], "model cnn classifies images, and the data have a label for every pixel"),
        ([*TINY, "dataset=digits"], "classifies every pixel, and the data have a label for each image"),
        ([*TINY, "freeze=true"], "freeze=true trains only the classifier of a network with random weights"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(tmp_path, overrides, message):
    write_scenes(tmp_path / "data")
    problems = check(recipe, compose_config(tmp_path, *overrides))
    assert len(problems) == 1 and message in problems[0]


def best_of_an_eighth(paths, size):
    """mIoU in percent of the true masks, averaged over 8 x 8 pixels and enlarged again: poles get lost.

    LR-ASPP decides at an eighth of the image's side.
    """
    metric = MulticlassJaccardIndex(11, ignore_index=IGNORE)
    for path in paths:
        mask = np.array(Image.open(BytesIO(path.read_bytes())))
        side = max(mask.shape)
        whole = np.full((side, side), IGNORE)
        top = (side - len(mask)) // 2
        whole[top : top + len(mask)] = np.where(mask < 11, mask, IGNORE)
        places = ((np.arange(size) + 0.5) * side / size).astype(int)
        labels = torch.from_numpy(whole[places][:, places])
        shares = F.one_hot(torch.where(labels == IGNORE, 11, labels), 12)[..., :11].permute(2, 0, 1)[None].float()
        large = F.interpolate(F.avg_pool2d(shares, 8), size=(size, size), mode="bilinear", align_corners=False)
        metric.update(large.argmax(1), labels[None])
    return 100 * float(metric.compute())


@pytest.mark.slow
def test_a_network_learns_four_real_images_by_heart(tmp_path, data_root):
    small = tmp_path / "data/camvid"
    for name in ("train", "test"):
        for suffix in ("", "annot"):
            (small / f"{name}{suffix}").mkdir(parents=True)
            for path in sorted((data_root / f"camvid_small/train{suffix}").iterdir())[:4]:
                (small / f"{name}{suffix}" / path.name).symlink_to(path)
    options = ["model=lraspp_mobilenetv2_tv", "dataset=camvid", "dataset.augment=none", "batch_size=4"]
    options += ["model.size=160", "engine.epochs=250", "engine.eval_every=250", "optimizer.lr=0.1", "loader=device"]
    options += ["save_as=null", f"weights_root={tmp_path / 'own'}"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mobilenetv2_100_tv_r224.safetensors").symlink_to(
        data_root / "weights/imagenet/mobilenetv2_100_tv_r224.safetensors"
    )
    launch(recipe, compose_config(tmp_path, *options))
    (row,) = read_rows(tmp_path / "output")
    assert row.metrics["miou"] > best_of_an_eighth(sorted((small / "testannot").iterdir()), 160)
