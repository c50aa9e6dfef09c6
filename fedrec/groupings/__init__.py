"""The ways of sharing users out to groups that can be chosen by name: each group has a model of its own."""
