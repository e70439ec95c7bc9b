"""From texts to vectors: tokenizer, graphs, streamed weights, pooling, known models."""
