"""The configuration: its keys, how it is composed, and the checks before anything is loaded."""
