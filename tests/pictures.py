"""Pictures for tests of data: noise in folders of files and in parquet files."""

import io

import numpy as np
from PIL import Image


def picture(number, size=(6, 4), mode="RGB"):
    """Return the noise image of that number; size is (width, height)."""
    depth = (3,) if mode == "RGB" else ()
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], *depth))
    return Image.fromarray(values.astype(np.uint8))


def write_part(folder, counts, first=0, **options):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(first + i + 100 * ord(name[0]), **options).save(folder / name / f"{i}.png")


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, labels, *, names=None, image="image", label="label", pictures=None):
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    features = Features(
        {image: ImageFeature(), label: ClassLabel(names=names) if names else Value("int64")}
    )
    pictures = pictures or [png(picture(i)) for i in range(len(labels))]
    rows = {image: [{"bytes": b, "path": None} for b in pictures], label: labels}
    path.parent.mkdir(exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(str(path))


def rows(split):
    """Return a split as a set of (label, bytes)."""
    pairs = zip(split.labels.tolist(), split.pixels.numpy(), strict=True)
    return {(label, pixels.tobytes()) for label, pixels in pairs}
