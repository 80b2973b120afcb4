"""The same as `recombine report`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
