"""What all tests share: a quiet, offline, quick-to-import environment, and where real data lie."""

import os
from pathlib import Path

# Before anything imports numba, timm, wandb or pyplot.
os.environ.update(NUMBA_DISABLE_JIT="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", MPLBACKEND="Agg")
# Small networks gain nothing from threads, which wait for each other where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec

import pytest

OPTIONAL = {
    "onnxruntime": ["cli/test_export.py"],
    "numba": ["core/test_counter_rng.py"],
    "wandb": ["core/test_tracking.py", "report/test_dashboards.py"],
    "ffcv": ["transfer/test_parallel_jobs.py"],
}
"""Files that are left out where a package is missing that Recombine works without."""
collect_ignore = [file for package, files in OPTIONAL.items() if find_spec(package) is None for file in files]


def pytest_report_header() -> list[str]:
    """What is left out, and why."""
    return [f"left out: {', '.join(collect_ignore)}, for want of packages"] if collect_ignore else []


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real datasets and weights, from the environment variable RECOMBINE_DATA."""
    folder = os.environ.get("RECOMBINE_DATA")
    if not folder:
        pytest.skip("RECOMBINE_DATA names no folder with real data")
    return Path(folder)
