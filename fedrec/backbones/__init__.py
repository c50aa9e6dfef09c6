"""The recommenders that can be chosen by name: each scores items for a user from item vectors."""
