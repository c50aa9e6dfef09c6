"""The server: one run from data to summary, its checkpoints, and its folder."""
