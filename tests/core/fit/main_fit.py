"""An entry for tests."""

from src.core.entry import main

if __name__ == "__main__":
    main("tests.core.fit.recipe", "fit")
