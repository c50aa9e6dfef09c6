"""The data sets that can be chosen by name: each file reads one form of data."""
