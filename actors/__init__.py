"""Who does what: one file per actor, and the supervision trees of the programs."""
