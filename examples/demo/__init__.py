"""The demonstration: one command that trains, scales and loses a node while it trains."""
