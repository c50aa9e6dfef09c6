"""The `fedrec` command line and the in-process grid: the only package that imports both apps."""
