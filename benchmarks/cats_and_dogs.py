"""Cats and dogs of PASCAL VOC as a folder of one's own: 20 masks and 180 photographs without (docs/results.md).

    python benchmarks/cats_and_dogs.py --voc=VOCdevkit/VOC2012 --out=CATDOG --draw=0

Photographs of train_aug that show a cat or a dog and not both, on at least one pixel in a hundred. By the hash of their ids,
60 are held out to choose settings by (val_tune.txt); of the others a draw takes 10 masks of each animal and 180 photographs.
What VOC's val shows of the two is val.txt. All other objects are background.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

ANIMALS = {8: 1, 12: 2}  # VOC's cat and dog -> the folder's classes
MASKS_EACH, WITHOUT_MASK, HELD_OUT = 10, 180, 60
CLASSES = 'names = ["background", "cat", "dog"]\nbackground = "background"\nvoid = 255\n'


def mask_of(voc: Path, name: str) -> np.ndarray:
    """u8[H,W]: 0 background, 1 cat, 2 dog, 255 void."""
    label = np.asarray(Image.open(voc / "SegmentationClassAug" / f"{name}.png"))
    mask = np.where(label == 255, 255, 0).astype(np.uint8)
    for old, new in ANIMALS.items():
        mask[label == old] = new
    return mask


def animal_of(mask: np.ndarray) -> int:
    """1 or 2 where a mask shows one of the animals alone on enough pixels, otherwise 0."""
    shown = [new for new in ANIMALS.values() if np.mean(mask == new) >= 0.01]
    return shown[0] if len(shown) == 1 and len(np.intersect1d(mask, list(ANIMALS.values()))) == 1 else 0


def by_hash(names: list[str], salt: str) -> list[str]:
    """The names in an order that the salt alone decides."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).hexdigest())


def listed(voc: Path, split: str) -> dict[str, int]:
    """The images of a split that show an animal, with the animal."""
    names = (voc / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    animals = {name: animal_of(mask_of(voc, name)) for name in names}
    return {name: animal for name, animal in animals.items() if animal}


def write(voc: Path, out: Path, name: str, with_mask: bool) -> None:
    """One photograph, and its mask."""
    shutil.copyfile(voc / "JPEGImages" / f"{name}.jpg", out / "images" / f"{name}.jpg")
    if with_mask:
        Image.fromarray(mask_of(voc, name)).save(out / "masks" / f"{name}.png")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="the folder with JPEGImages/ and SegmentationClassAug/")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--draw", type=int, default=0, help="which 20 masks and 180 photographs")
    args = parser.parse_args()
    for part in ("images", "masks"):
        (args.out / part).mkdir(parents=True)
    val, pool = listed(args.voc, "val"), listed(args.voc, "train_aug")
    order = by_hash(list(pool), "held out")
    tune, rest = order[:HELD_OUT], by_hash(order[HELD_OUT:], f"draw {args.draw}")
    masked = [name for animal in ANIMALS.values() for name in [n for n in rest if pool[n] == animal][:MASKS_EACH]]
    others = [name for name in rest if name not in masked][:WITHOUT_MASK]
    for name in (*val, *tune, *masked):
        write(args.voc, args.out, name, with_mask=True)
    for name in others:
        write(args.voc, args.out, name, with_mask=False)
    for split, names in {"train": masked + others, "val": list(val), "val_tune": tune}.items():
        (args.out / f"{split}.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    (args.out / "classes.toml").write_text(CLASSES)
    print(
        f"{args.out}: {len(masked)} masks, {len(others)} without, val {len(val)}, val_tune {len(tune)} of {len(pool)}"
    )


if __name__ == "__main__":
    main()
