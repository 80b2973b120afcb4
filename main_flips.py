"""What does one trained network know that another does not?"""

from src.core.entry import main

if __name__ == "__main__":
    main("src.flips.recipe", "prediction_flips/flips")
