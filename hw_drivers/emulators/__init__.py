"""Emulated devices behind pseudo-terminals, for tests and for trying things without hardware."""
