"""The same as `recombine export`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
