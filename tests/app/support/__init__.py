"""Helpers of the app's tests."""
