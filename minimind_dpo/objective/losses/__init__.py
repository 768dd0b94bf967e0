"""Every preference loss, one function each, and what they share."""
