"""What crosses the network, free of any framework: packets, the protocol, and what each kind of packet holds."""
