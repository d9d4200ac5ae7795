"""Images: reading them, choosing which, feeding them to the device, changing them at random."""
