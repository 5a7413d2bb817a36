"""The version of potstill, written into every run and artefact."""

__version__ = "0.1.0"
