"""HTTP dialects: parse, call one use case, render."""
