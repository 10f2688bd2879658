"""What tests of annotations share."""

from pathlib import Path

import numpy as np
from PIL import Image

from forec_jax.annotations.gather import FORMATS
from forec_jax.annotations.paint import Rule, paint
from forec_jax.annotations.photos import Photos
from forec_jax.contracts import IGNORE
from forec_jax.data.remarks import Remarks

FILES = Path(__file__).parent / "annotations" / "files"


def photo(file, height=12, width=16, **options):
    """An image file of random pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*file.name.encode()]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return file


def labels(kind, annotations, images, overlap=None, uncovered="background", remarks=None, **options):
    """The rows of each image's label, a letter a pixel: the first of its class, "." for background, "x" for void."""
    remarks = remarks or Remarks()
    found = FORMATS[kind].read(annotations, Photos(images), remarks, **options)
    names = ["background", *(name for name in found.classes if name != "background")]
    index = {name: k for k, name in enumerate(names)}
    rule = Rule(index, 0 if uncovered == "background" else IGNORE, overlap or FORMATS[kind].overlap)
    letters = {IGNORE: "x", 0: "."} | {k: name[0] for name, k in index.items() if k}
    painted = {image.names[0]: paint(image, image.size, rule, remarks) for image in found.images}
    return {name: ["".join(letters[k] for k in row) for row in p.label.tolist()] for name, p in painted.items()}
