"""Write a network for use without this project: what it computes is compared with the original before it is kept.

recombine export --model student.safetensors student.pt2 student.onnx
recombine export --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors --task mnist mnist.onnx
recombine export --model cnn-digits_high-s0 --clone clone.safetensors cloned.pt2
recombine export --model outputs/stitch/my-run/offspring/0.safetensors --images my/images offspring.onnx
recombine export --model student.safetensors student.pt2 --model-card README.md --push-to-hub me/student

A .pt2 file runs with torch alone, a .onnx file with any ONNX runtime. Both take uint8 images [B, 3, S, S] of the
network's own size, prepare them inside, give logits, and hold the class names. Those of detectors take one image and
give objects [1, 100, 6]: left, top, right, bottom, score, label (-1: nothing).
"""

from __future__ import annotations

import argparse

from recombine.cli.network_options import add_network_arguments, check_network, image_files
from recombine.cli.paths import new_file, place
from recombine.core.errors import ConfigError

SUFFIXES = (".pt2", ".onnx")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=new_file, help=f"what to write: names that end in {', '.join(SUFFIXES)}"
    )
    add_network_arguments(parser)
    parser.add_argument("--task", help="a patch by name; by default the only patch there is, else the base")
    parser.add_argument("--images", type=place, action="append", help="compare on these images too, not on noise alone")
    parser.add_argument("--model-card", type=new_file, help="write what the network is, for others, as Markdown")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload files and card to the Hugging Face hub")
    return parser.parse_args()


def main() -> None:
    """Write each file and show how it compares; torch is imported once nothing is wrong with the command."""
    options = arguments()
    if wrong := [str(file) for file in options.files if file.suffix not in SUFFIXES]:
        raise ConfigError(f"cannot export to {', '.join(wrong)}: names that end in {', '.join(SUFFIXES)} are needed")
    check_network(options)
    images = image_files(options.images) if options.images else []
    from recombine.cli.exports import export

    export(images, options)
