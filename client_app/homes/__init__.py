"""Where a node's users come from: a place in a simulation, or a site with data of its own."""
