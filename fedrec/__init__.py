"""What both sides of the federation share and no framework owns."""

__version__ = "0.1.0"
