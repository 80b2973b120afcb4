"""The same as `recombine artifacts`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["artifacts", *sys.argv[1:]]))
