"""Baselines of a run: the same data, split, candidates, backbone and embedding, without a federation."""
