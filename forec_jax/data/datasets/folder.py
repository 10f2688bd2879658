"""A data set of one's own: a folder of images, of which some have masks, and a class file."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from forec_jax.contracts import UNLABELLED
from forec_jax.data.classfile import CLASS_FILE, read_classes
from forec_jax.data.decode import ColourRule, Follow, MaskRule, decode_mask_of, decode_photo
from forec_jax.data.imagefile import encode_like
from forec_jax.data.listing import UNLABELLED_FOLDERS, entries_of
from forec_jax.data.pipeline import OnCorrupt
from forec_jax.data.prepared import (
    Entry,
    Notes,
    Packed,
    PreparedSource,
    Records,
    index_by_id,
    maskless,
    notes_of,
    prepare,
)
from forec_jax.data.remarks import Remarks
from forec_jax.data.shrink import shrunk_label
from forec_jax.data.source import DataEntry, DataError, Dataset, Labels, Place, dataset_of, select
from forec_jax.data.splits import group_rule, hold_out, read_list
from forec_jax.options import SHARE, option

log = logging.getLogger(__name__)

_VAL_SEED = 0  # fixed, so that runs of any seed are scored on the same images


def folder_dataset(
    root: str | Path,
    prepared: str | Path | None = None,
    val_fraction: float = 0.2,
    *,
    val_groups: str = "",
    val_ids: Sequence[str] | None = None,
    masks_follow: Follow = "display",
    longest_side: int = 0,
    on_corrupt: OnCorrupt = "raise",
) -> Dataset:
    """The folder `root` with images/, masks/, classes.toml and, if there, unlabelled/, train.txt and val.txt.

    Splits are train (images without masks included), val, and one more for every val_*.txt. Without val.txt, val is
    drawn (see `hold_out`). Every file is decoded once when it is packed into `prepared`, on first use. A training image
    whose file equals one of another split is left out, with a warning. Raises DataError for anything that cannot be used,
    naming the file.

    Args:
        root: the folder.
        prepared: where it is packed; None: the user's cache.
        val_fraction: the share of the images with masks that is held out for val.
        val_groups: which images stay together then (see `group_rule`).
        val_ids: val itself, as a run has stored it; neither drawn nor read from val.txt then.
        masks_follow: what masks of photographs with an orientation tag were drawn on.
        longest_side: larger images are scaled down to it, once; 0: none.
        on_corrupt: "skip" leaves out what cannot be used, with a warning for each file.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder; set data.root to the one with images/, masks/ and {CLASS_FILE}")
    if masks_follow not in ("display", "file"):
        raise DataError(f"data.folder.masks_follow={masks_follow!r} must be 'display' or 'file'")
    classes = read_classes(base / CLASS_FILE)
    by_id = index_by_id(entries_of(base), base)
    splits = _splits(base, by_id, _Val(val_fraction, val_groups, val_ids))
    pack = _Pack(base, classes.rule, masks_follow, longest_side)
    folder = _packed(base, tuple(by_id.values()), prepared, pack, on_corrupt)
    pool = PreparedSource(Records(folder), base, tuple(by_id.values()), _as_stored(len(classes.names)))
    notes, labels = notes_of(folder), Labels(classes.names, classes.palette, classes.background)
    sources = {split: select(pool, ids) for split, ids in _cleaned(base, by_id, splits, notes).items()}
    return dataset_of("folder", labels, sources, maskless(by_id.values()), notes.sums)


def folder_splits(
    root: str | Path, val_fraction: float = 0.2, val_groups: str = "", val_ids: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The ids of each split of the folder `root`, val among them, from names and lists alone: no image is read.

    `folder_dataset` leaves out what cannot be read, and copies. Raises DataError as it does.
    """
    base = Path(root)
    return _splits(base, index_by_id(entries_of(base), base), _Val(val_fraction, val_groups, val_ids))


class _Val(NamedTuple):
    """How val is found."""

    fraction: float
    groups: str
    ids: Sequence[str] | None


class _Pack:
    """What is stored of a photograph and its mask: the image as its file is, or smaller, and the label that it means.

    So a bad file is named before the training and not in the middle of it, and a large one is decoded once.
    """

    def __init__(self, base: Path, rule: MaskRule | ColourRule, follow: Follow, longest_side: int) -> None:
        self._base, self._rule, self._follow, self._longest_side = base, rule, follow, longest_side
        self.options = f"labels masks_follow={follow} longest_side={longest_side}"  # another packing has others
        self.remarks = Remarks()

    def __call__(self, entry: Entry, image: bytes, mask: bytes) -> Packed:
        photo = decode_photo(image, str(self._base / entry.image), self._longest_side, self.remarks)
        size = photo.pixels.shape[0], photo.pixels.shape[1]
        stored = image if size == photo.size else encode_like(photo.pixels, photo.lossy)
        if not entry.mask:
            return Packed(stored, b"", b"")
        file = str(self._base / entry.mask)
        label = decode_mask_of(photo, mask, file, self._rule, self._follow, self.remarks)
        label = shrunk_label(label, size)
        return Packed(stored, encode_like(label, lossy=False), label.tobytes())


def _packed(
    base: Path, entries: Sequence[Entry], prepared: str | Path | None, pack: _Pack, on_corrupt: OnCorrupt
) -> Path:
    folder = prepare(
        "folder_" + re.sub(r"\W+", "_", base.resolve().name),
        base,
        entries,
        lists=(CLASS_FILE,),
        prepared=None if prepared is None else Path(prepared),
        pack=pack,
        options=f"{pack.options} on_corrupt={on_corrupt}",
        skip=on_corrupt == "skip",
    )
    pack.remarks.report()
    return folder


def _as_stored(num_classes: int) -> MaskRule:
    """How a packed label is read: class indices, IGNORE and UNLABELLED."""
    return MaskRule(num_classes, unlabelled=(UNLABELLED,))


def _cleaned(
    base: Path, by_id: Mapping[str, Entry], splits: Mapping[str, tuple[str, ...]], notes: Notes
) -> dict[str, tuple[str, ...]]:
    """The splits without what could not be read, and train without copies of images that are for the score."""
    bad = frozenset(notes.unreadable)
    scored = {name: split for split, ids in splits.items() if split != "train" for name in ids}
    copied = {
        name: next(other for other in group if other in scored)
        for group in notes.copies
        if any(other in scored for other in group)
        for name in group
        if name not in scored
    }
    if copied:
        name, original = next(iter(copied.items()))
        log.warning(
            "%d images are copies of images that are for the score, and are not trained on: %s is a copy of %s, of %s",
            len(copied), base / by_id[name].image, base / by_id[original].image, scored[original],
        )  # fmt: skip
    cleaned = {split: tuple(name for name in ids if name not in bad) for split, ids in splits.items()}
    cleaned["train"] = tuple(name for name in cleaned["train"] if name not in copied)
    for split, ids in cleaned.items():
        if not any(by_id[name].mask for name in ids):
            raise DataError(f"{base}: no image of {split} with a mask is left; repair the files that are named above")
    return cleaned


def _splits(base: Path, by_id: dict[str, Entry], how: _Val) -> dict[str, tuple[str, ...]]:
    """The ids of train, val and further evaluation splits: from the lists, or with a drawn val."""
    further = {file.stem: _masked(file, by_id) for file in sorted(base.glob("val_*.txt"))}
    scored = frozenset().union(*further.values())
    beside: frozenset[str] = frozenset()
    if how.ids is not None:
        val = _stored_val(base, by_id, how.ids)
        if (base / "val.txt").is_file():
            _say_if_val_was_edited(base / "val.txt", by_id, val)
        else:  # drawn, by groups
            beside = _of_their_groups(by_id, val, group_rule(how.groups))
    elif (base / "val.txt").is_file():
        val = _masked(base / "val.txt", by_id)
    elif (base / "train.txt").is_file():
        raise DataError(f"{base}: train.txt needs a val.txt beside it; without both, val is drawn")
    else:
        val, beside = _drawn_val(base, {name: entry for name, entry in by_id.items() if name not in scored}, how)
    if how.groups and how.ids is None and (base / "val.txt").is_file():
        log.warning(
            "%s: data.folder.val_groups=%r has no effect beside val.txt, which says what val is", base, how.groups
        )
    train = tuple(name for name in _train(base, by_id, scored.union(val)) if name not in beside)
    masked = sum(by_id[name].mask is not None for name in train)
    if not masked:
        raise DataError(f"{base}: no image to train on has a mask; take some off val.txt, or add masks")
    log.info("%d images to train on, %d of them with masks; %d in val", len(train), masked, len(val))
    return {"train": train, "val": val, **further}


def _stored_val(base: Path, by_id: Mapping[str, Entry], ids: Sequence[str]) -> tuple[str, ...]:
    if gone := [name for name in ids if name not in by_id or not by_id[name].mask]:
        raise DataError(
            f"{base}: {', '.join(gone[:3])} of the stored val are gone, or have no mask any more; restore them"
        )
    return tuple(ids)


def _say_if_val_was_edited(file: Path, by_id: Mapping[str, Entry], val: Sequence[str]) -> None:
    if differing := set(read_list(file, by_id)).symmetric_difference(val):
        log.warning(
            "%s differs in %d images (%s) from the val that the run began with, and keeps: another run has the new one",
            file, len(differing), ", ".join(sorted(differing)[:3]),
        )  # fmt: skip


def _drawn_val(base: Path, by_id: Mapping[str, Entry], how: _Val) -> tuple[tuple[str, ...], frozenset[str]]:
    """A drawn val, and the images without masks that belong to its groups, which may not be trained on either."""
    masked = [name for name, entry in by_id.items() if entry.mask]
    if len(masked) < 2:
        raise DataError(
            f"{base}: one image has a mask; draw another one, as one is trained on and one is for the score"
        )
    group_of = group_rule(how.groups)
    val, forced = hold_out(masked, how.fraction, _VAL_SEED, group_of)
    log.info(
        "%s has no val.txt: %d of the %d images with masks are for evaluation and never trained on: %s",
        base, len(val), len(masked), ", ".join(val[:10]) + (", ..." if len(val) > 10 else ""),
    )  # fmt: skip
    if forced:
        log.info("so few images have masks that val may change when masks are added; val.txt fixes it")
    return val, _of_their_groups(by_id, val, group_of)


def _of_their_groups(by_id: Mapping[str, Entry], val: Sequence[str], group_of: Callable[[str], str]) -> frozenset[str]:
    groups = {group_of(name) for name in val}
    beside = frozenset(name for name, entry in by_id.items() if not entry.mask and group_of(name) in groups)
    if beside:
        log.info("%d images without masks are of val's groups and not trained on: %s", len(beside), min(beside))
    return beside


def _train(base: Path, by_id: dict[str, Entry], val: Collection[str]) -> tuple[str, ...]:
    """train.txt with everything that lies in unlabelled/; without that list, whatever is not in val."""
    if not (base / "train.txt").is_file():
        return tuple(name for name in by_id if name not in val)
    listed = frozenset(_listed(base / "train.txt", by_id))
    if both := sorted(listed.intersection(val)):
        raise DataError(f"{base / 'train.txt'}: {', '.join(both[:3])} are in a val*.txt too; remove them from one")
    train = [
        n for n, entry in by_id.items() if n in listed or (entry.image.startswith(UNLABELLED_FOLDERS) and n not in val)
    ]
    if unused := len(by_id) - len(train) - len(val):
        log.warning("%s: %d images are on neither list and not used", base, unused)
    return tuple(train)


def _listed(file: Path, by_id: dict[str, Entry]) -> tuple[str, ...]:
    ids = read_list(file, by_id)
    if unknown := [name for name in ids if name not in by_id]:
        raise DataError(
            f"{file}: {', '.join(unknown[:3])} are not in images/ or unlabelled/; add them, or take them off"
        )
    return ids


def _masked(file: Path, by_id: dict[str, Entry]) -> tuple[str, ...]:
    ids = _listed(file, by_id)
    if bare := maskless(by_id[name] for name in ids):
        raise DataError(f"{file}: {', '.join(sorted(bare)[:3])} have no mask; add masks, or take them off")
    return ids


@dataclass(frozen=True)
class Options:
    """How images are scored where no val.txt says which, and what masks were drawn on."""

    val_fraction: float = option(0.2, "part of the images with masks that is val where there is no val.txt", SHARE)
    val_groups: str = option(
        "", 'images that stay together in a drawn val: "folder", or a pattern of names with one group (docs/data.md)'
    )
    masks_follow: Follow = option(
        "display",
        'masks of photographs with an orientation tag: drawn as it is shown ("display"), or as its "file" lies',
    )


def load(place: Place, o: Options) -> Dataset:
    """The folder's images."""
    return folder_dataset(
        place.root,
        place.prepared,
        o.val_fraction,
        val_groups=o.val_groups,
        val_ids=place.val_ids,
        masks_follow=o.masks_follow,
        longest_side=place.longest_side,
        on_corrupt=place.on_corrupt,
    )


def _folder_labels(root: Path, _: Options) -> Labels:
    """The class file's labels."""
    said = read_classes(root / CLASS_FILE)
    return Labels(said.names, said.palette, said.background)


ENTRY = DataEntry("folder", Options, load, _folder_labels, holds=f"images/, masks/ and {CLASS_FILE}")
