"""Measuring of shipping: what gets lost when processes are killed and the link is cut, how long it takes, and how much goes."""
