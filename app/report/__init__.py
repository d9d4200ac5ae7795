"""The report of a run: one web page made from the run's folder, without scripts and without a network."""
