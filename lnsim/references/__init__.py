"""The papers that lnsim rests on, and what of its results is its own."""
