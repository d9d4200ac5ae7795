"""Images: read them, select rows, feed them to the device, augment them."""
