"""The agent's side: CNI calls, sandboxes, the outbox of releases, the files and sockets on the node."""
