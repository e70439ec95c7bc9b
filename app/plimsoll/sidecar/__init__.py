"""Weights as files that are mapped: the streaming loader, the files and their cache folder."""
