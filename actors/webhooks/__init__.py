"""Admission over HTTPS: what the API server asks every replica before it stores an object."""
