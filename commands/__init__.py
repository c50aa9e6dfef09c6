"""The `fedrec` command line and the in-process runtime: the only room that sees both apps."""
