"""Measurements of the host: how fast it fine-tunes."""
