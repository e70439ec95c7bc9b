"""Moves of a collection to another model: with checkpoints, a verdict and a way back."""
