"""Formats of published face data, and the writer of images.npy."""
