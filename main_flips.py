"""What does one trained network know that another does not?"""

from recombine.cli.main import main

if __name__ == "__main__":
    main("flips")
