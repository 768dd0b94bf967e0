"""What is kept on disk of a data set: tokens, reference log-probs, the report."""
