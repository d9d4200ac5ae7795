"""Bills (what costs money), the reaper (releases forgotten machines) and teardown."""
