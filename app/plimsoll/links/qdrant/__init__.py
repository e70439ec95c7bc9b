"""Points of a Qdrant collection that applications ask for by an alias."""
