"""Writes part of a data set as a folder of image files, as people have them: train/<class>/ and test/<class>/.

python scripts/write_folder.py data/imagenette160 five --classes 5 --train 40 --test 100
python scripts/write_folder.py data/usps digits_as_files --train 100

The source holds Parquet shards in the layout of the Hugging Face hub. Images are taken evenly over each class, their
bytes as they are stored.
"""

from __future__ import annotations

import argparse

import numpy as np

from recombine.cli.paths import existing_folder, new_folder
from recombine.data.parquet import parquet

SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
"""By the first two bytes."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=existing_folder, help="folder with train-*.parquet and test-*.parquet")
    parser.add_argument("out", type=new_folder, help="folder to write")
    parser.add_argument("--classes", type=int, help="the first so many classes (default: all)")
    parser.add_argument("--train", type=int, help="training images of a class (default: all)")
    parser.add_argument("--test", type=int, help="test images of a class (default: all)")
    return parser.parse_args()


def main() -> None:
    """Write both splits and say how many images each has."""
    options = arguments()
    found = parquet(options.source)
    for split, most in (("train", options.train), ("test", options.test)):
        reader = found.splits[split]()
        written = 0
        for label in range(len(found.class_names))[: options.classes]:
            places = np.flatnonzero(np.asarray(reader.labels) == label)
            places = places[np.linspace(0, len(places) - 1, min(most or len(places), len(places))).astype(int)]
            folder = options.out / split / found.class_names[label].split(",")[0].replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for place in places:
                content = reader[int(place)]
                (folder / f"{place:05}{SUFFIXES[content[:2]]}").write_bytes(content)
            written += len(places)
        print(f"{options.out / split}: {written} images")


if __name__ == "__main__":
    main()
