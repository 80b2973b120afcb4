"""Train a network on a dataset and save it for the other entries."""

from src.core.entry import main

if __name__ == "__main__":
    main("src.pretrain.recipe", "pretrain/pretrain")
