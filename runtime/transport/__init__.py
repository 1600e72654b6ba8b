"""How two programs ask each other: the port and its adapters."""
