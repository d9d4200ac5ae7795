"""Process 1 of the project's image, the login shell and the self-test."""
