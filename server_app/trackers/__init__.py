"""The programs that a run can be followed in, by name."""
