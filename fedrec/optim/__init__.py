"""The training recipes that can be chosen by name: what a user does locally, and what the server does with it."""
