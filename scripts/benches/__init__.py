"""What bench.py measures, a module a section: `measure()` yields a row for each comparison."""
