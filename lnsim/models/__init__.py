"""The two-layer linear network: problem, reduction, linearised twin, norm ledger."""
