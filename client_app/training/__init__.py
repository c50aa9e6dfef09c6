"""How chosen users train: the two engines and what they share."""
