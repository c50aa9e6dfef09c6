"""Messages with nothing in them: the floor under every round of the runtime."""
