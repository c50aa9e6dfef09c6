"""Attacks on a federation by who takes part in it, simulated: what they reach, and what the limits leave of it."""
