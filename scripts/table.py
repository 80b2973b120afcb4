"""The same as `recombine table`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["table", *sys.argv[1:]]))
