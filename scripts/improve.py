"""The same as `recombine improve`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["improve", *sys.argv[1:]]))
