"""Measure Plimsoll: a load test of a running server, and a comparison with its alternatives."""
