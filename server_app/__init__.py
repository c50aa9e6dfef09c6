"""The server's side: pre-training, the run and its folder, the report."""
