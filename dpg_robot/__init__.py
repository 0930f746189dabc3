"""Denoising policy gradients for robots: learn in simulation, run in real time, keep learning from logs."""
