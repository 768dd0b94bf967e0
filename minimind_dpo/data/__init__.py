"""From preference files to batches."""
