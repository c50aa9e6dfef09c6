"""How tensors become bytes: each codec is exact or unbiased, of known size, and never pickles."""
