"""Classify image files, their pixels or objects in them with a network, any clones in it and any patches of it.

recombine predict --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors images/*.png
recombine predict --model cnn-digits_high-s0 --clone outputs/pnc/*/clone.safetensors images/
recombine predict --model outputs/stitch/*/offspring/0.safetensors images/
recombine predict --model timm:resnet50 --patch cars.safetensors --patch birds.safetensors --task auto a.jpg
recombine predict --model lraspp_mobilenetv2_tv-camvid-s0 --masks masks/ images/
recombine predict --model torchvision:fasterrcnn_resnet50_fpn --boxes pictures/ images/
"""

from __future__ import annotations

import argparse
import re

from recombine.cli.network_options import add_network_arguments, check_network, image_files
from recombine.cli.paths import new_folder, place
from recombine.core.errors import ConfigError


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", type=place, help="image files or folders of them")
    add_network_arguments(parser)
    add("--task", help="only this patch (base: only the base; auto: the most confident of all)")
    add("--top", type=int, default=1, help="so many classes of each image, the most probable first")
    add("--masks", type=new_folder, help="of a network that labels pixels: the folder for a mask of each image (PNG)")
    add(
        "--boxes", type=new_folder, help="of a network that finds objects: the folder for a picture of each image (PNG)"
    )
    add("--score", type=float, default=0.5, help="of a network that finds objects: those with at least this score")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:<number>")
    add("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def main() -> None:
    """Print the classes of every image; torch is imported once nothing is wrong with the command."""
    options = arguments()
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: a number of classes of at least 1 is needed")
    if not 0 <= options.score <= 1:
        raise ConfigError(f"--score {options.score}: a number from 0 to 1 is needed")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ConfigError(f"--device {options.device}: one of auto, cpu, cuda, cuda:<number> is needed")
    files = image_files(options.images)
    check_network(options)
    from recombine.cli.classify import classify

    classify(files, options)
