"""How an option is declared: its type, its limits, and what is said of a value outside them."""
