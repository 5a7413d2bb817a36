"""Published constants of recovery.

Sources: SRe2L (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092) and CDA (Yin and Shen, TMLR
2024, arXiv 2311.18838), by the scripts of their releases.
"""

from __future__ import annotations

from dataclasses import replace

from potstill.augment import Curriculum
from potstill.recover.settings import Recovery

_CROPS, _WHOLE = Curriculum(kind="constant"), Curriculum(kind="constant", least=1.0)

CDA_IN1K = Recovery()
CDA_TINY = replace(CDA_IN1K, lr=0.4, bn=0.05, roll=1 / 16)
CDA_IN21K = replace(CDA_IN1K, iterations=2000, lr=0.05, bn=0.25)
"""For a teacher of images in [0, 1], as they are."""
SRE2L_IN1K = replace(CDA_IN1K, curriculum=_CROPS)
SRE2L_TINY = replace(SRE2L_IN1K, lr=0.1, bn=1.0, roll=1 / 16, two_sided=True)
SRE2L_CIFAR100 = replace(
    SRE2L_IN1K, iterations=1000, curriculum=_WHOLE, flip_prob=0.0, roll=1 / 8, two_sided=True
)
