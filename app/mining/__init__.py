"""Pseudo-IDs: embeddings -> nearest neighbours -> clusters."""
