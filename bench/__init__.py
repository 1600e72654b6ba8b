"""Figures of the machine it runs on: printed, never asserted."""
