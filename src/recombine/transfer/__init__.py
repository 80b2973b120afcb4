"""Knowledge transfer between any two trained classifiers, and from several at once (Roth et al., ICLR 2024)."""
