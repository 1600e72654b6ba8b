"""Which addresses are the cluster's own: found, and kept in the status of the SpiderCoordinators."""
