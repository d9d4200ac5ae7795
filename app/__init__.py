"""The half that runs where the GPUs are: images, embeddings, losses, checkpoints. No machines, SSH or money."""
