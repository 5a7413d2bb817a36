"""Studies of distilled sets and of how they are made: rows, tables and a plot each."""

from potstill.studies.correlation import correlation
from potstill.studies.kept import Study, free, keep
from potstill.studies.variance import variance_study
from potstill.studies.variance_asked import Comparison
from potstill.studies.windows import Studied, studied, windowed, windows

__all__ = [
    "Comparison",
    "Studied",
    "Study",
    "correlation",
    "free",
    "keep",
    "studied",
    "variance_study",
    "windowed",
    "windows",
]
