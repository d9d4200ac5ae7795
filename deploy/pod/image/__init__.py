"""Process 1 of the project's image, and what it starts."""
