"""Where images come from, how they are normalised, and how a validation part is cut."""
