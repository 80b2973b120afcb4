"""The same as `recombine dashboards`."""

import sys

from recombine.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["dashboards", *sys.argv[1:]]))
