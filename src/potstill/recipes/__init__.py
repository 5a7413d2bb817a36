"""Published settings as functions that return a full run."""
