"""Measure how well embeddings distinguish people."""
