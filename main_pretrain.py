"""Train a network on a dataset and save it for the other entries."""

from recombine.cli.main import main

if __name__ == "__main__":
    main("pretrain")
