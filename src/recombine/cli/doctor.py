"""Say what this machine has: versions, device, FFCV, datasets, weights, logger. Part of every bug report.

recombine doctor
recombine doctor data_root=my/data weights_root=my/data/weights

Exit code 0: everything the project needs is there; 1: something is missing, marked by "!".
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from recombine.cli.overrides import compose_all
from recombine.core.errors import ConfigError
from recombine.core.files import CONFIG_DIR
from recombine.core.settings import to_dict
from recombine.run.config import misplaced_roots
from recombine.run.console import show_problems

Finding = tuple[bool, str]
"""Whether it is as it should be, and what it is."""


def versions(cfg: DictConfig) -> Iterator[Finding]:
    """Python, the packages that decide about numbers, and this code's commit."""
    from recombine.run import provenance

    for package, version in provenance.versions().items():
        yield version is not None or package == "ffcv", f"{package} {version or 'not installed'}"
    code = provenance.commit()
    checkout = f"commit {code['commit'][:12]}{' with local changes' * code['dirty']}" if "commit" in code else ""
    yield True, f"recombine {code['version']}, {checkout or 'no git checkout'}"


def torchvision_pair(cfg: DictConfig) -> Iterator[Finding]:
    """Whether torchvision's compiled operators fit torch."""
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield True, "torchvision's operators load"
    except (ImportError, RuntimeError) as error:
        yield False, f"torchvision does not fit torch: {str(error).splitlines()[0]}"
        yield (
            False,
            "a CPU-only torch (version ending in +cpu, or from another index) mixed with PyPI's torchvision does this; "
            "take both from one place: pip install -r requirements.txt",
        )


def device(cfg: DictConfig) -> Iterator[Finding]:
    """What `device=auto` means here."""
    import torch

    from recombine.run import provenance

    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield True, f"CPU: {provenance.device_name(torch.device('cpu'))} (torch {build}, no GPU in reach)"
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield True, f"cuda:{index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"


def ffcv(cfg: DictConfig) -> Iterator[Finding]:
    """Whether the library behind the default loader loads, compiled part included."""
    try:
        import_module("ffcv")
        yield True, "loader=ffcv works"
    except (ImportError, OSError) as error:
        yield False, f"FFCV does not load ({error}); bash scripts/setup.sh compiles it, loader=torch works without it"


def datasets(cfg: DictConfig) -> Iterator[Finding]:
    """Datasets found below data_root."""
    from recombine.data.sources import DATASETS, locate

    root = Path(cfg.data_root)
    found = {name: place[1] for name in DATASETS if name != "folder" and (place := locate(name, name, root))}
    for name, path in found.items():
        yield True, f"dataset={name}: {path}"
    others = {path.parent for path in root.glob("*/*.parquet")} - set(found.values())
    for folder in sorted(others):
        yield True, f"dataset=parquet dataset.folder={folder.name}: {folder}"
    if not found and not others:
        yield True, f"none in {root} (data_root=...); dataset=digits needs no files"


def weights(cfg: DictConfig) -> Iterator[Finding]:
    """Folders with checkpoints below weights_root."""
    from recombine.models.weight_files import SUFFIXES

    root = Path(cfg.weights_root)
    folders = Counter(path.parent for path in sorted(root.rglob("*")) if path.suffix in SUFFIXES)
    for folder, count in folders.items():
        yield True, f"weights_root={folder}: {count} checkpoint{'s' * (count > 1)}"
    if not folders:
        yield True, f"none in {root} (weights_root=...)"


def logger(cfg: DictConfig) -> Iterator[Finding]:
    """Where runs are logged beside their folder."""
    if find_spec("wandb") is None:
        yield False, "logger=wandb: wandb is not installed; pip install wandb, or logger=none"
        return
    from recombine.run.wandb_logger import effective_mode

    yield True, f"logger=wandb is {effective_mode('auto')} here"


CHECKS: tuple[Callable[[DictConfig], Iterator[Finding]], ...] = (
    *(versions, torchvision_pair, device, ffcv, datasets, weights, logger),
)


def main() -> int:
    """Print every finding; the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    composition = compose_all(str(CONFIG_DIR), "base", sys.argv[1:])
    problems = composition.problems
    if composition.cfg is not None:
        problems += misplaced_roots(to_dict(composition.cfg))
    if problems or composition.cfg is None:
        show_problems(problems)
        return ConfigError.exit_code
    good = True
    for check in CHECKS:
        print(check.__name__.replace("_", " "))
        for fine, text in check(composition.cfg):
            print(f"  {' ' if fine else '!'} {text}")
            good = good and fine
    return 0 if good else 1
