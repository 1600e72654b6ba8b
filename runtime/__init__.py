"""The actor kernel and its ports. Knows nothing of IP addresses."""
