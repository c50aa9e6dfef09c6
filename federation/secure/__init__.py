"""The server's side of a secure sum: its stages around a round's training, and the sum without its masks."""
