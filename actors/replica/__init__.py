"""One controller replica: what it sees of the cluster, what it tells agents of that, and who else is there."""
