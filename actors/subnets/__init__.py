"""Subnets: pools are cut from them, by hand or automatically for a workload."""
