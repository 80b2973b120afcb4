"""Can two networks be crossed so that their offspring beat both?"""

from recombine.cli.main import main

if __name__ == "__main__":
    main("stitch")
