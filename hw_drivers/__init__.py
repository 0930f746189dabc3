"""Serial links, servo protocols and real robots."""
