"""The configuration of a run: its schema, and how overrides become one, with all their errors at once."""
