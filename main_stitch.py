"""Can two networks be crossed so that their offspring beat both?"""

from src.core.entry import main

if __name__ == "__main__":
    main("src.stitch.recipe", "stitch/stitch")
