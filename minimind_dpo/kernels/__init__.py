"""Matrix products and memory of a CPU, below everything that uses torch."""
