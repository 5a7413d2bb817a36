"""Studies of distilled sets and of how they are made: rows, a table and a plot each."""

from potstill.studies.correlation import correlation
from potstill.studies.kept import Study, free, keep
from potstill.studies.windows import Studied, studied, windowed, windows

__all__ = ["Studied", "Study", "correlation", "free", "keep", "studied", "windowed", "windows"]
