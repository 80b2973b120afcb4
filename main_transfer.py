"""Move what one trained network knows into another, without losing what that one knew."""

from src.core.entry import main

if __name__ == "__main__":
    main("src.transfer.recipe", "transfer/transfer")
