"""What a machine must have: code, environment, data."""
