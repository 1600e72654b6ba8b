"""Traces, metrics, logs and health: what the programs tell the outside world about themselves."""
