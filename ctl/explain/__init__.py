"""`spiderpoolctl explain`: why a pod gets its addresses where it does, and why a pool gives none."""
