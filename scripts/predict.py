"""The same as `recombine predict`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
