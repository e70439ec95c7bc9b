"""A table of PostgreSQL with vectors of pgvector, which Plimsoll did not make."""
