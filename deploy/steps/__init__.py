"""What commands are made of, in the order of a run."""
