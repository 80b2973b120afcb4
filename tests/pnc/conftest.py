"""The digits and small networks with random weights."""

import pytest
import torch

from recombine import data as datasets
from recombine import models as zoo

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


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with small networks: one tells 0 to 4 apart, one 5 to 9, one 2 to 4."""
    folder = tmp_path_factory.mktemp("networks")
    settings = {"loader": {"kind": "torch", "workers": 0}, "data_root": "", "seed": 0, "device": "cpu"}
    for seed, (name, classes) in enumerate({"low": range(5), "high": range(5, 10), "middle": range(2, 5)}.items()):
        node = {"name": "digits", "class_subset": list(classes)}
        data = datasets.open_data(node, cache_root=folder, **settings)
        net = {"name": "cnn", "widths": [16, 32, 32], "weights": None, **SIZE}
        model = zoo.build(net, classes=len(classes), seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        for epoch in range(8):
            for batch in data.loader("train", 64, train=True).epoch(epoch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model.train()(batch.images), batch.labels).backward()
                optimizer.step()
        data.close()
        zoo.save(model.eval(), folder / f"{name}.safetensors", {})
    return folder
