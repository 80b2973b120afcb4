"""PAINT: fine-tuned weights, interpolated with those before."""
