"""What a node answers to the server's messages."""
