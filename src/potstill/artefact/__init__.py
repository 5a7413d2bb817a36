"""The distilled set: images, targets and the recipe to train on them."""
