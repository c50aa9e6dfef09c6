"""How tensors become bytes: every codec is exact or unbiased, its size is known beforehand, and nothing is pickled."""
