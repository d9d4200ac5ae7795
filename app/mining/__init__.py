"""Mine pseudo-IDs: embeddings -> nearest neighbours -> clusters."""
