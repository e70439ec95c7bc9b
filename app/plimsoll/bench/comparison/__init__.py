"""What the benchmark measures, with what, and how it is reported."""
