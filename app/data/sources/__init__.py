"""Readers for published formats of face data, and the writer of images.npy."""
