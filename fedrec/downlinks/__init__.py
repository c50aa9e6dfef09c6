"""How the trained tables travel to devices: the family `downlink`, one file a member."""
