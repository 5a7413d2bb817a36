"""Expert trajectories: their store, their training, and sources of networks."""
