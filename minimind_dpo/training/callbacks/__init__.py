"""What watches a run: progress, throughput, sampled answers, weights that moved."""
