"""Servers, stubs and helpers of the laptop's tests."""
