"""Resume states: what is written, where a run stands, and how it goes on exactly."""
