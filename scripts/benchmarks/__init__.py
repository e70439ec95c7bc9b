"""What `benchmark.py` measures, with what, and how it is reported."""
