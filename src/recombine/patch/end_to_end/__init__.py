"""Fine-tuning of a whole network with its patch, and the regularizers of Table 5."""
