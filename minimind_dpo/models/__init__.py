"""Models: recognise, load, run and export MiniMind checkpoints and any transformers decoder."""
