"""The laptop's requests, answered on the machine."""
