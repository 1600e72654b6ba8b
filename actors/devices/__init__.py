"""The agent as a device plugin of kubelet's: NICs and a cloud's sub-interfaces as resources that pods ask for."""
