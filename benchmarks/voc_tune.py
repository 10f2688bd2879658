"""A part of PASCAL VOC to choose settings on: 60 images of a list are its val, and off every other list (docs/lessons.md).

    python benchmarks/voc_tune.py --voc=VOCdevkit/VOC2012 --of=train --out=VOCTUNE

No list of 78 or fewer labels (subset/) has one of the 60; they are the first of the rest by the hash of their ids. Images
and masks are links. VOC's own val is not read. `--of=train_aug` has more animals.
"""

import argparse
import os
from pathlib import Path

from cats_and_dogs import by_hash

from forec_jax.data.splits import list_sha256

HELD_BACK = 60
LISTS = Path("ImageSets") / "Segmentation"


def ids(file: Path) -> list[str]:
    """The ids of a list."""
    return file.read_text().split()


def held_back(voc: Path, split: str) -> list[str]:
    """The images to choose settings by."""
    used = {
        name for file in voc.glob(f"{LISTS}/subset/*/seed*.txt") if int(file.parent.name) <= 78 for name in ids(file)
    }
    free = [name for name in ids(voc / LISTS / f"{split}.txt") if name not in used]
    return sorted(by_hash(free, "tune")[:HELD_BACK])


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="the folder with JPEGImages/ and SegmentationClassAug/")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--of", choices=("train", "train_aug"), default="train", help="the list that the 60 are of")
    args = parser.parse_args()
    out, tune = args.out / "VOC2012", held_back(args.voc, args.of)
    (out / LISTS).mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        os.symlink((args.voc / folder).resolve(), out / folder)
    os.symlink((args.voc / LISTS / "subset").resolve(), out / LISTS / "subset")
    for split in ("train", "train_aug"):
        names = [name for name in ids(args.voc / LISTS / f"{split}.txt") if name not in tune]
        (out / LISTS / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (out / LISTS / "val.txt").write_text("".join(f"{name}\n" for name in tune))
    print(f"{args.out}: val is {len(tune)} images of {args.of}, SHA-256 of the ids {list_sha256(tune)}")


if __name__ == "__main__":
    main()
