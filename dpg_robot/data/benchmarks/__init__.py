"""Measurements of the robot log under kills, in real processes."""
