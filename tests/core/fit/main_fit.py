"""An entry for tests."""

from recombine.cli.entries import Entry
from recombine.cli.main import main

if __name__ == "__main__":
    main(Entry("fit", "tests.core.fit.recipe", "fit", "tests.core.fit.settings:FitSettings"))
