"""Move what one trained network knows into another, without losing what that one knew."""

from recombine.cli.main import main

if __name__ == "__main__":
    main("transfer")
