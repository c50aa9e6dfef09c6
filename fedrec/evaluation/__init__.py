"""How good a ranking is: metrics, untrained baselines, curves."""
