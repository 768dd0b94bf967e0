"""Judges: who compares two answers, and what each can be trusted for."""
