"""Why stages refuse a configuration, in words; apart from them, for who checks one need not load what they need."""

NOT_SPARSE = (
    "federation.uplink=sparse: the chosen privacy noises the sum of updates, and a list of the rows that a user has "
    "changed, or its length, would tell beside it what the noise is to hide; give federation.uplink=dense"
)
"""Why a sum that is noised does not come as lists of rows."""
