"""Protocols, matched baselines and scores."""
