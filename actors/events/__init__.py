"""Kubernetes events: what has to be said about an object, said once and not too often."""
