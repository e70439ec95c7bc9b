"""The HTTP server: where it listens, what it takes of a connection, and how it ends."""
