"""Attacks on a simulated federation: what those who take part reach, and what those who look learn."""
