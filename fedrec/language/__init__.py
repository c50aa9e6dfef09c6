"""Language models: where they are on a machine, their parts, and the tokens that they read."""
