"""The guard: limits of a machine, and how the machine releases itself."""
