"""Retrieval by words: what is left where no model can run."""
