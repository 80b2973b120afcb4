"""Pretraining: any network on any dataset, saved as a checkpoint that the other entries take by name."""
