"""Generators of the reference pages of the documentation; see scripts/docs.py."""
