"""What a controller does for agents' requests: who may ask, how a pod comes to its addresses, how they come back."""
