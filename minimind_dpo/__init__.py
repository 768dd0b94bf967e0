"""minimind_dpo: Direct Preference Optimization for MiniMind and other small language models."""

__version__ = "0.1.0"
