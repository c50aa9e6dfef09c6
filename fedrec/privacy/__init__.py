"""The privacy mechanisms that can be chosen by name: a hook on each user's update and one on the aggregate."""
