"""GGUF files: where their bytes come from, what a header says, how blocks expand to float32."""
