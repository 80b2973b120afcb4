"""Prediction flips: what one pretrained model knows that another does not (Roth et al., ICLR 2024)."""
