"""How well embeddings tell people apart."""
