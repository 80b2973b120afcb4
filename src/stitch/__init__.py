"""Stitching for Neuroevolution: two trained networks crossed by stitches into many offspring (Guijt et al., 2024)."""
