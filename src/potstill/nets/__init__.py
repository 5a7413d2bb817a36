"""Networks by exact name, and their parameters as one flat vector."""
