"""Collections of documents in one SQLite file, and search in them."""
