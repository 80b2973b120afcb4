"""A folder with three trained networks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # nets this small only wait for a second thread


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Networks under weights/, predictions and converted data shared by all tests."""
    from digits import make_networks

    place = tmp_path_factory.mktemp("transfer")
    make_networks(place)
    return place
