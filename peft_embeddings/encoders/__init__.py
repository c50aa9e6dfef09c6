"""The text encoders that can be chosen by name: item sentences to vectors."""
