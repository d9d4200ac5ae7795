"""What costs, and how it ends: bills, the reaper, teardown."""
