"""What people may write into the cluster: what is filled in, and what is refused and why. Pure, a file a kind."""
