"""Training of networks on images: plans, batches, state, measures, pruning."""
