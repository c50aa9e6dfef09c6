"""The Hydra tree; a package, so that an installed fedrec carries it."""
