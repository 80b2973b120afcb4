"""Stitching for Neuroevolution: two trained networks crossed into one searchable network (Guijt et al., 2024)."""
