"""The same as `recombine clones`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["clones", *sys.argv[1:]]))
