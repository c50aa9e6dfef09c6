"""Interaction data: what every loader returns, how it is cleaned and split, and how it is kept on disk."""
