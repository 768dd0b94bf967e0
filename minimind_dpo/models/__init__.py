"""From checkpoints to transformers models, and back."""
