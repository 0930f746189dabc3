"""Transitions: the robot log and data sets (no torch, no mujoco)."""
