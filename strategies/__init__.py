"""What is exchanged in which phase, and how the users' updates are combined."""
