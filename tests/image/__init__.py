"""The container image: what is in it, what is not, and that its programs start."""
