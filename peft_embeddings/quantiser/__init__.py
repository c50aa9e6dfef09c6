"""Residual quantisation on the server: item vectors to short codes, learned once before an embedding is trained."""
