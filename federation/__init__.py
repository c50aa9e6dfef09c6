"""The server's engine: the loop over rounds, who takes part, what is sent, the fold, the meter, checkpoints."""
