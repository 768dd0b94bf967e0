"""What runs and sweeps came to, read from their folders: tables, pages, a recommendation."""
