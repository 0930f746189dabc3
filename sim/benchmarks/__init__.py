"""Benchmarks of learning: our learner beside published ones, on the same tasks, frames and seeds."""
