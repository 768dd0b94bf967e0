"""MiniMind's own files: which generation, which fields, which tensors."""
