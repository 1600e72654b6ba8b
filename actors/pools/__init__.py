"""The pools: one writer each, found by rendezvous over the ready replicas, within a byte budget, with a history."""
