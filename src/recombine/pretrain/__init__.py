"""Pretraining: any network of the zoo on any dataset, kept as a checkpoint that the other entries take by name."""
