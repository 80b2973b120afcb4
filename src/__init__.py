"""Recombine: train, compare and combine networks that are already trained."""

from src.core.config import register_resolvers

register_resolvers()
