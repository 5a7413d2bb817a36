"""Tables and pictures for people."""

from potstill.report.table import (
    HEAD,
    caption,
    cells,
    markdown,
    matrix,
    rich_matrix,
    rich_table,
    text,
)

__all__ = ["HEAD", "caption", "cells", "markdown", "matrix", "rich_matrix", "rich_table", "text"]
