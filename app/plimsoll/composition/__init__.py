"""All wiring, and the only place that reads settings: everything below takes plain values."""
