"""The container image without a container engine: Debian packages and locked wheels in, an OCI archive out."""
