"""What a device keeps between messages."""
