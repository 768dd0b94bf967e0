"""From the token store to laid out micro-batches of whole optimizer steps."""
