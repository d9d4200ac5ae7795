"""Synthetic faces: any number of people, drawn from a seed."""
