"""The objective: log-probs, losses and metrics, in pure torch."""
