"""The training half, for the GPU machine: images, embeddings, losses, checkpoints. No provisioning, SSH or billing."""
