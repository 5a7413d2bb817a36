"""Differentiable optimizers, unrolled training, first-order training."""
