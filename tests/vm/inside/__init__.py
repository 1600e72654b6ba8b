"""Tests that run in a guest. Nothing of the machine's network is in there, and what is left over goes with it."""
