"""Drawn faces: as many people as asked for, from a seed alone."""
