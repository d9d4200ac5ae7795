"""One file a command, each the story of what it does."""
