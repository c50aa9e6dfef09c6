"""The networks that can be chosen by name: what the devices of users can do, and how long they take."""
