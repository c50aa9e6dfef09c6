"""How the users of a round are chosen: what can be chosen by name."""
