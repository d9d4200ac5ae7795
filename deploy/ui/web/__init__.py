"""The page of all runs: its server, what it lets in, its templates and charts. It gets documents, and asks nobody."""
