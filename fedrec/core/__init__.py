"""What everything else stands on: errors, the registry, tensors, randomness, keys and secrets."""
