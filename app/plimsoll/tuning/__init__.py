"""What limits throughput, and what the server tries against it."""
