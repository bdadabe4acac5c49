"""Longer questions than a benchmark point: accuracy, heads, topology, scale. Each is a command of its own."""
