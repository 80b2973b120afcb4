"""One folder of images and one network in, the best network that can be made of them in a given time out.

recombine improve --images my/images --network timm:mobilenetv3_small_100.lamb_in1k
recombine improve --images my/images --network things --zoo weights --zoo timm:resnet18.a1_in1k --budget 2h --out better

Splits off validation and test images, fits a classifier on the network's features, ranks the networks of the zoo as
teachers, tries fine-tuning, a patch, transfer and stitching by successive halving on the validation images, and keeps
the original if nothing helps for sure. The test images are read once, at the end. Repeat the command to continue it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from recombine.cli.paths import filled, folder, new_folder
from recombine.core.errors import ConfigError
from recombine.core.files import check_writable
from recombine.improve.names import short_name, zoo_networks
from recombine.models.checks import check
from recombine.models.weight_files import SUFFIXES

UNITS = {"s": 1, "m": 60, "h": 3600}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, type=folder, help="a folder for each class; or train/, val/ and test/ with these")
    add("--network", required=True, type=filled, help="a name, a checkpoint file, timm:<name>, torchvision:<name>")
    add(
        "--zoo",
        action="append",
        type=filled,
        default=[],
        help="networks to learn from: a folder of checkpoints, or a network",
    )
    add("--budget", default="30m", help="time for what is tried: 90s, 30m, 2h")
    add("--out", type=new_folder, help="where the result goes; default: improved/<network>-<folder>")
    add("--weights-root", type=folder, default="weights", help="where checkpoints are found by name")
    add("--batch-size", type=int, default=32, help="of all trainings; all images where they are fewer")
    return parser.parse_args()


def main() -> None:
    """Check the command and start; torch is imported once nothing is wrong with it."""
    options = arguments()
    budget = parse_seconds(options.budget)
    if problems := find_problems(options):
        raise ConfigError(problems)
    options.out = options.out or Path("improved") / f"{short_name(options.network)}-{options.images.resolve().name}"
    check_writable(options.out)
    from recombine.cli.guide import improve

    improve(options, budget)


def find_problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with the command, before anything is made."""
    problems = []
    if not options.images.is_dir():
        problems.append(f"--images {options.images}: there is no such folder")
    if options.batch_size < 1:
        problems.append(f"--batch-size {options.batch_size}: at least 1 is needed")
    for zoo in map(Path, options.zoo):
        if zoo.is_dir() and not any(file.suffix in SUFFIXES for file in zoo.iterdir()):
            problems.append(f"--zoo {zoo}: this folder has no checkpoints; their names end in {', '.join(SUFFIXES)}")
    if problems:
        return problems
    for name in (options.network, *zoo_networks(options.zoo, options.network)):
        problems += check(name, weights_root=options.weights_root)
    return problems


def parse_seconds(text: str) -> float:
    """`90s`, `30m`, `1.5h` as seconds; ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or float(found[1]) == 0:
        raise ConfigError(f"--budget {text}: a time is needed, such as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]
