"""Some classes of a source, by name or by published lists."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.data.types import P, Parts


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Name classes of ImageNet-1K in the order of their labels.

    `ids` count the 1,000 classes in the order of their WordNet ids, from 0; `wnids` are those ids.
    """

    ids: tuple[int, ...]
    wnids: tuple[str, ...]
    help: str


CLASS_LISTS: Registry[ClassList] = Registry("class list")


def selected(parts: Parts, wanted: str | None) -> Parts:
    """Return the parts with only the wanted classes, in the order in which they are named.

    `wanted` is None (all), a class list ("imagenette@mtt"), or names of classes between commas
    (semicolons, if names contain commas).

    Raises:
        InputError: for an unknown or repeated class, or one without test images.
    """
    if wanted is None:
        return parts
    labels = _labels(wanted, parts.classes)
    number = torch.full((len(parts.classes),), -1)
    number[labels] = torch.arange(len(labels))

    def kept(part: P) -> P:
        rows = part.take(number[part.labels] >= 0)
        return replace(rows, labels=number[rows.labels])

    train, test = kept(parts.train), None if parts.test is None else kept(parts.test)
    if test is not None and not len(test):
        raise InputError(f"The test part has no image of the classes {wanted}.")
    classes = tuple(parts.classes[label] for label in labels)
    return replace(parts, train=train, test=test, classes=classes, identity=None)


def _labels(wanted: str, classes: tuple[str, ...]) -> list[int]:
    if wanted in CLASS_LISTS.names() or ("@" in wanted and wanted not in classes):
        return _listed(wanted, CLASS_LISTS.get(wanted), classes)
    comma = ";" if ";" in wanted else ","
    names = [wanted] if wanted in classes else [name.strip() for name in wanted.split(comma)]
    for place, name in enumerate(names):
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3) or classes[:3]
            hint = " or ".join(repr(n) for n in near)
            raise InputError(f"Unknown class {name!r} among {len(classes)}: perhaps {hint}?")
        if name in names[:place]:
            raise InputError(f"The class {name!r} is named twice.")
    return [classes.index(name) for name in names]


def _listed(name: str, chosen: ClassList, classes: Sequence[str]) -> list[int]:
    if set(chosen.wnids) <= set(classes):
        return [classes.index(wnid) for wnid in chosen.wnids]
    if len(classes) == 1000:
        return list(chosen.ids)
    raise InputError(
        f"{name!r} is a list of ImageNet-1K classes; this source has {len(classes)} classes and "
        f"not all of {', '.join(chosen.wnids[:3])}, ..."
    )


_MTT = "Cazenavette et al., CVPR 2022, arXiv:2203.11932: published at 128 px"
_IDC = "Kim et al., ICML 2022, arXiv:2205.14959: published at 224 px"
# Each class as id:wnid, in label order.
_TEXTS = {
    "imagenette": """
        0:n01440764 217:n02102040 482:n02979186 491:n03000684 497:n03028079 566:n03394916
        569:n03417042 571:n03425413 574:n03445777 701:n03888257
    """,
    "imagewoof": """
        193:n02096294 182:n02093754 258:n02111889 162:n02088364 155:n02086240 167:n02089973
        159:n02087394 273:n02115641 207:n02099601 229:n02105641
    """,
    "imagefruit": """
        953:n07753275 954:n07753592 949:n07745940 950:n07747607 951:n07749582 957:n07768694
        952:n07753113 945:n07720875 943:n07718472 948:n07742313
    """,
    "imageyellow": """
        309:n02206856 986:n12057211 954:n07753592 951:n07749582 987:n12144580 779:n04146614
        599:n03530642 291:n02129165 72:n01773157 11:n01531178
    """,
    "imagemeow": """
        281:n02123045 282:n02123159 283:n02123394 284:n02123597 285:n02124075 291:n02129165
        292:n02129604 290:n02128925 289:n02128757 287:n02127052
    """,
    "imagesquawk": """
        84:n01806143 130:n02007558 88:n01818515 144:n02051845 145:n02056570 22:n01614925
        96:n01843383 9:n01518878 100:n01860187 89:n01819313
    """,
    "imagenet100": """
        452:n02869837 64:n01749939 374:n02488291 236:n02107142 993:n13037406 176:n02091831
        882:n04517823 904:n04589890 503:n03062245 74:n01773797 57:n01735189 959:n07831146
        953:n07753275 508:n03085013 872:n04485082 228:n02105505 122:n01983481 421:n02788148
        599:n03530642 858:n04435653 157:n02086910 449:n02859443 994:n13040303 608:n03594734
        151:n02085620 209:n02099849 15:n01558993 876:n04493381 246:n02109047 766:n04111531
        455:n02877765 857:n04429376 131:n02009229 119:n01978455 234:n02106550 90:n01820546
        45:n01692333 936:n07714571 479:n02974003 272:n02114855 665:n03785016 653:n03764736
        659:n03775546 158:n02087046 960:n07836838 765:n04099969 908:n04592741 703:n03891251
        407:n02701002 560:n03379051 317:n02259212 938:n07715103 724:n03947888 748:n04026417
        331:n02326432 619:n03637318 120:n01980166 267:n02113799 155:n02086240 708:n03903868
        368:n02483362 772:n04127249 167:n02089973 494:n03017168 180:n02093428 431:n02804414
        342:n02396427 854:n04418357 305:n02172182 54:n01729322 268:n02113978 667:n03787032
        166:n02089867 277:n02119022 662:n03777754 798:n04238763 313:n02231487 498:n03032252
        299:n02138441 222:n02104029 682:n03837869 593:n03494278 775:n04136333 674:n03794056
        592:n03492542 137:n02018207 758:n04067472 717:n03930630 606:n03584829 281:n02123045
        796:n04229816 211:n02100583 620:n03642806 830:n04336792 544:n03259280 275:n02116738
        242:n02108089 570:n03424325 99:n01855672 169:n02090622
    """,
}


def _class_list(text: str, note: str, count: int | None = None) -> ClassList:
    pairs = [pair.split(":") for pair in text.split()[:count]]
    return ClassList(
        ids=tuple(int(number) for number, _ in pairs),
        wnids=tuple(wnid for _, wnid in pairs),
        help=f"{len(pairs)} classes of ImageNet-1K ({note})",
    )


for _name, _text in _TEXTS.items():
    if _name != "imagenet100":
        CLASS_LISTS.add(f"{_name}@mtt")(_class_list(_text, _MTT))
CLASS_LISTS.add("imagenet10@idc")(_class_list(_TEXTS["imagenet100"], _IDC, 10))
CLASS_LISTS.add("imagenet100@idc")(_class_list(_TEXTS["imagenet100"], _IDC))
