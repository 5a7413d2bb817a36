"""Labels of views for tests: whole, where the library makes them batch by batch."""

import torch

from potstill.recover.relabel import view_logits


def whole_logits(*arguments, **options):
    """Return what `view_logits` yields as one tensor [N, K], by row."""
    rows, logits = zip(*view_logits(*arguments, **options), strict=True)
    return torch.cat(logits)[torch.cat(rows).argsort()]
