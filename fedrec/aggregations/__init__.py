"""How users' updates are added up: the family `aggregation`, one file a member."""
