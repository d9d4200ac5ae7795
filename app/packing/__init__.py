"""Blocks of images.npy, packed for a slow connection and unpacked on the machine."""
