"""The supervisor and what it writes about its job."""
