"""Augmentation policies: parameters drawn apart from applied."""
