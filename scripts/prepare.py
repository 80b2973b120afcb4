"""The same as `recombine prepare`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
