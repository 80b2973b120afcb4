"""A folder with three trained networks."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from recombine import models as zoo

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # nets this small only wait for a second thread


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Networks under weights/, predictions and converted data shared by all tests."""
    from digits import make_networks

    place = tmp_path_factory.mktemp("transfer")
    make_networks(place)
    return place


@pytest.fixture
def networks(folder):
    """Student, its copy as it was, and two teachers."""
    student, *teachers = (zoo.build(name, weights_root=folder / "weights") for name in ("narrow", "wide", "letters"))
    return student, deepcopy(student), teachers


@pytest.fixture(scope="module")
def batch(folder):
    """128 training images of the digits."""
    from digits import open_digits

    data = open_digits(folder)
    found = next(data.loader("train", 128, train=False).epoch(0))
    data.close()
    return found
