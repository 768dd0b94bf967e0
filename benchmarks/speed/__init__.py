"""Parts of `throughput.py`: the workload, the ways to train on it, the clock and the report."""
