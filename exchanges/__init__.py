"""What server and clients say to each other, in the runtime's records: known to both sides."""
