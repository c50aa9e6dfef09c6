"""Training and ranking with a middle that is the server's."""
