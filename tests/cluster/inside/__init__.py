"""What runs inside a machine of the lab: its first process, which imports nothing of the lab itself."""
