"""One run: its folder, its parts, its end; and sweeps of runs."""
