"""The client: message handlers, training engines, evaluation, the users' private store and local data."""
