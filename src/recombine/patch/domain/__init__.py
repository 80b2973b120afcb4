"""From one domain to another without its labels: Table 6."""
