"""Can a part of one network be copied into another, and taken out again?"""

from recombine.cli.main import main

if __name__ == "__main__":
    main("pnc")
