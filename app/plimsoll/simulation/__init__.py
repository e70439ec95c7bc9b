"""The server's rules against a made-up engine, on a clock that jumps."""
