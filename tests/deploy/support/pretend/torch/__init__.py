"""Stub of torch: the launcher needs only torch.distributed.run."""
