"""How an item becomes a vector: full and compressed tables, text encoders, and the pre-trained base table."""
