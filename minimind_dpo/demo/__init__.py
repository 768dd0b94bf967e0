"""The embedded default: a tiny model, its data, its judge, and the script that made them."""
