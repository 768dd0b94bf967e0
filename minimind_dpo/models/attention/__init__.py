"""Attention planned once a batch, for any transformers model."""
