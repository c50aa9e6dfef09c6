"""What of a user's update leaves its device, and in which form: the family `uplink`, one file a member."""
