"""Shipping of robot logs to a host: nothing lost, nothing twice, in order (no torch, no mujoco)."""
