"""Ceilings, and the release of a machine by itself."""
