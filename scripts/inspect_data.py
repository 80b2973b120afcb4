"""The same as `recombine inspect_data`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["inspect_data", *sys.argv[1:]]))
