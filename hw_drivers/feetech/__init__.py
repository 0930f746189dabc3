"""Feetech serial bus servos of the STS and SCS series: packets on the wire and control tables."""
