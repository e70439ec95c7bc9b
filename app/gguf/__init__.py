"""GGUF files: read, expand, stream into weights that Plimsoll owns."""
