"""Tables and pictures for people."""

from potstill.report.plots import correlation_plot, windows_plot
from potstill.report.probes import (
    probe_caption,
    probe_cells,
    probe_markdown,
    probe_plot,
    rich_probes,
)
from potstill.report.table import (
    HEAD,
    caption,
    cells,
    markdown,
    matrix,
    rich_matrix,
    rich_of,
    rich_table,
    text,
)
from potstill.report.variance import variance_plot

__all__ = [
    "HEAD",
    "caption",
    "cells",
    "correlation_plot",
    "markdown",
    "matrix",
    "probe_caption",
    "probe_cells",
    "probe_markdown",
    "probe_plot",
    "rich_matrix",
    "rich_of",
    "rich_probes",
    "rich_table",
    "text",
    "variance_plot",
    "windows_plot",
]
