"""How fast lnsim is, whether its backends agree, and what else one could use; not installed."""
