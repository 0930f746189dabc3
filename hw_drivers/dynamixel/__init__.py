"""Dynamixel servos: protocol 2.0 and the control tables of the X series."""
