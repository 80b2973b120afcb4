"""The same as `recombine doctor`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
