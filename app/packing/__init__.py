"""Pack blocks of images.npy for a slow connection and unpack them on the machine."""
