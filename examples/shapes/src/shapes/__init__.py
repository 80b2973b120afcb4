"""A project beside Recombine: its own data, network and method."""
