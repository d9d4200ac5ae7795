"""What every program on the machine uses: the run folder, locks, clocks, processes."""
