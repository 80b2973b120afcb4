"""The digits and small networks with random weights."""

import pytest

from src import data as datasets
from src import models as zoo

SIZE = {"size": 16, "mean": [0.3] * 3, "std": [0.3] * 3}


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The data set, opened."""
    where = {"data_root": "", "cache_root": tmp_path_factory.mktemp("pnc"), "seed": 0, "device": "cpu"}
    data = datasets.open_data({"name": "digits"}, loader={"kind": "torch", "workers": 0}, **where)
    yield data
    data.close()


@pytest.fixture(scope="session")
def build():
    """build(seed, classes=10): a network of three convolutions for 16 pixels."""
    return lambda seed, classes=10: zoo.build({"name": "cnn", "widths": [8, 8, 16], **SIZE}, classes=classes, seed=seed)
