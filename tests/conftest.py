"""What all tests share: a quiet, offline, quick-to-import environment, and where real data lie."""

import os
from pathlib import Path

# Before anything imports numba, timm, wandb or pyplot.
os.environ.update(NUMBA_DISABLE_JIT="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", MPLBACKEND="Agg")
# Small networks gain nothing from threads, which wait for each other where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real datasets and weights, from the environment variable RECOMBINE_DATA."""
    folder = os.environ.get("RECOMBINE_DATA")
    if not folder:
        pytest.skip("RECOMBINE_DATA names no folder with real data")
    return Path(folder)
