"""Faces in photographs: find them, mark five points, cut them out as 112x112 training images."""
