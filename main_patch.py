"""Can a frozen network learn new tasks through a tiny removable patch?"""

from recombine.cli.main import main

if __name__ == "__main__":
    main("patch")
