"""One suite for the store port, run on every adapter, so that no fake is more forgiving than the real thing."""
