"""Can a frozen network learn new tasks through a tiny removable patch?"""

from src.core.entry import main

if __name__ == "__main__":
    main("src.patch.recipe", "patch/patch")
