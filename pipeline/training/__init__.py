"""How adapters are trained: jobs, batches, the loop, and the rivals of the comparison."""
