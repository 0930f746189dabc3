"""Measures the driver of servo buses against emulated servos, beside the vendors' own libraries."""
