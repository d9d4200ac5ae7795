"""The steps of a run, which the commands call: resolve, provision, rendezvous, restore, nodes, download."""
