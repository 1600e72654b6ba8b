"""The node's side of CNI: verbs and versions, plugin JSON, results and errors, the socket, the journal, the kernel."""
