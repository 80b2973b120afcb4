"""Can a part of one network be copied into another, and taken out again?"""

from src.core.entry import main

if __name__ == "__main__":
    main("src.pnc.recipe", "pnc/pnc")
