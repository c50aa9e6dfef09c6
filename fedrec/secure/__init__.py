"""Secure aggregation: what it takes to add up numbers that the server sees only the sum of (see `docs/privacy.md`)."""
