"""The client's side: handlers, training engines, the users' private store and local data."""
