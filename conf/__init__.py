"""The Hydra tree; it is a package so that an installed fedrec includes it."""
