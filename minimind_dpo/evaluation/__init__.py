"""How a model answers: sampling, and what is measured of the answers."""
