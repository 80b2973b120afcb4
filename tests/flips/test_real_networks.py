"""Public CIFAR-10 networks on real CIFAR-10 test images, against reading, preparing and counting by hand."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.results import read_rows
from recombine.flips import recipe
from recombine.run.launch import launch
from tests.flips.test_flips import compose_config

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MEASURED = {"resnet20": 91.73, "resnet32": 92.63, "resnet44": 93.10, "resnet56": 93.39}
MEASURED |= {"resnet20_optB_distiller": 91.71, "resnet8_mlcommons": 87.19}
"""Top-1 on the 10,000 test images, measured by others before this project had a line of code."""


def flips_of(data_root, folder, *overrides):
    roots = [f"data_root={data_root}", f"weights_root={data_root / 'weights' / 'cifar10'}"]
    launch(recipe, compose_config(folder, "dataset=cifar10", *roots, *overrides))
    return read_rows(folder / "output")


def test_two_residual_networks_by_hand(data_root, tmp_path):
    rows = flips_of(data_root, tmp_path, "models=[resnet20,resnet32]", "dataset.test_fraction=0.01")
    cfg = compose_config(tmp_path, "dataset=cifar10", f"data_root={data_root}", "dataset.test_fraction=0.01")
    data = datasets.open_data(
        cfg.dataset, loader=cfg.loader, data_root=data_root, cache_root=tmp_path, seed=0, device="cpu"
    )
    (file,) = (data_root / "cifar10").glob("**/test-*.parquet")
    table = pd.read_parquet(file).iloc[data.indices("test")]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]])
    images = torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()
    labels, right = table["label"].to_numpy(), {}
    for name in ("resnet20", "resnet32"):
        net = zoo.build(name, weights_root=data_root / "weights" / "cifar10").net
        with torch.no_grad():
            right[name] = net(images).argmax(1).numpy() == labels
    for row in rows:
        t, s = right[row.cell["teacher"]], right[row.cell["student"]]
        assert row.metrics["rho_pos"] == pytest.approx(100 * np.mean(t & ~s))
        assert row.metrics["accuracy_teacher"] == pytest.approx(100 * np.mean(t))
        assert row.series["positive_flips_per_class"] == np.bincount(labels[t & ~s], minlength=10).tolist()
    assert sum(row.metrics["positive_flips"] for row in rows) > 0


@pytest.mark.slow
def test_all_networks_have_their_accuracy(data_root, tmp_path):
    rows = flips_of(data_root, tmp_path, "models=all")
    assert len(rows) == 30
    found = {row.cell["teacher"]: row.metrics["accuracy_teacher"] for row in rows}
    assert found == pytest.approx(MEASURED, abs=0.05)
    assert min(row.metrics["rho_pos"] for row in rows) > 2, "every network knows something that any other does not"
