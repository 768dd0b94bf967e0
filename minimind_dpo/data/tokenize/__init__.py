"""From preference pairs to token ids."""
