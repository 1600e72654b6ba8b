"""The store port and its adapters: the API server, one SQLite file, memory."""
