"""Raw image and mask files packed once into array_record through TensorFlow Datasets, then read at random.

A data set brings a listing of its files; the rest is here. TFDS alone would go on using a prepared folder after the
source has changed, so the folder's name holds a SHA-256 of the listing: another source means another folder.
"""

import hashlib
import io
import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from forec_jax.data.decode import ColourRule, MaskRule, decode_image, decode_mask
from forec_jax.data.source import DataError, Example
from forec_jax.files import cache_folder, read_json
from forec_jax.locking import only_one
from forec_jax.progress import progress_bar

log = logging.getLogger(__name__)

_SPLIT = "pool"
_NOTES = "notes.json"


class Entry(NamedTuple):
    """An image and its mask by path, relative to the data set's root."""

    id: str
    image: str
    mask: str | None = None  # None: the image can only be used without labels


def index_by_id(entries: Iterable[Entry], root: Path) -> dict[str, Entry]:
    """The entries by id. Raises DataError, naming both files, where two images have one id."""
    by_id: dict[str, Entry] = {}
    for entry in entries:
        if (other := by_id.setdefault(entry.id, entry)) is not entry:
            raise DataError(
                f"{root / other.image} and {root / entry.image} have the same name, {entry.id}; rename or remove one"
            )
    return by_id


def maskless(entries: Iterable[Entry]) -> frozenset[str]:
    """The ids of the entries without a mask."""
    return frozenset(entry.id for entry in entries if entry.mask is None)


class Packed(NamedTuple):
    """What is stored of an entry, and what its mask says."""

    image: bytes
    mask: bytes
    meaning: bytes  # equal where masks say the same, whatever encodes them


Pack = Callable[[Entry, bytes, bytes], Packed]
"""From an entry and its encoded image and mask (b"" where there is none) to what is stored of them.

Raises DataError for those that cannot be used.
"""


def _as_it_is(entry: Entry, image: bytes, mask: bytes) -> Packed:
    """Takes every file as it is: a broken one is found when it is read."""
    return Packed(image, mask, mask)


class Notes(NamedTuple):
    """What was found out while a folder was packed."""

    copies: tuple[tuple[str, ...], ...] = ()  # ids of images whose files are equal, byte for byte
    unreadable: tuple[str, ...] = ()  # ids of what could not be used, where that was to be skipped
    sums: Mapping[str, str] = {}  # of an id's image file and of what its mask says


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Segmentation masks and images as they are encoded in their files."""

    name = "segmentation"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look for download checksums beside this file, with a package it does not install

    def __init__(self, *, root: Path, entries: Sequence[Entry], pack: Pack, skip: bool, **kwargs: Any):
        self._root, self._entries, self._pack, self._skip = root, entries, pack, skip
        self._ids_of: dict[bytes, list[str]] = {}
        self._unreadable: list[str] = []
        self._sums: dict[str, str] = {}
        super().__init__(**kwargs)

    @property
    def notes(self) -> Notes:
        """What the packing found out."""
        copies = tuple(tuple(ids) for ids in self._ids_of.values() if len(ids) > 1)
        return Notes(copies, tuple(self._unreadable), self._sums)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "mask": tfds.features.Image(shape=(None, None, 1)),  # no bytes where there is no mask
        }
        # Records keep the listing's order, so that an entry's index is its record's.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[int, dict[str, Any]]]]:
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, entry in enumerate(progress_bar(self._entries, desc="preparing", unit="image")):
            image, mask = self._stored(entry)
            # TFDS writes encoded bytes without TensorFlow; arrays would need it.
            yield key, {"id": entry.id, "image": io.BytesIO(image), "mask": io.BytesIO(mask)}

    def _stored(self, entry: Entry) -> tuple[bytes, bytes]:
        image = _read(self._root / entry.image)
        mask = _read(self._root / entry.mask) if entry.mask else b""
        of_image = hashlib.sha256(image).digest()
        self._ids_of.setdefault(of_image, []).append(entry.id)
        try:
            packed = self._pack(entry, image, mask)
        except DataError as error:
            if not self._skip:
                raise
            log.warning("%s", error)
            self._unreadable.append(entry.id)
            return b"", b""
        self._sums[entry.id] = hashlib.sha256(of_image + packed.meaning).hexdigest()[:16]
        return packed.image, packed.mask


def default_prepared() -> Path:
    """Where prepared data goes when no folder is named: `forec_jax` in the user's cache."""
    return cache_folder()


def _fingerprint(root: Path, entries: Sequence[Entry], lists: Sequence[str] = (), options: str = "") -> str:
    """A SHA-256 of the folder, of the ids, paths, sizes and times of the files used, and of `options`.

    The folder, as files of two can be alike in all of these: those that an archive or an image of a machine holds may have
    one time for all. Raises DataError for a missing file.
    """
    digest = hashlib.sha256(f"{root.resolve()}\n{options}".encode())
    for entry in entries:
        digest.update(f"{entry.id}\n".encode())
        for file in filter(None, (entry.image, entry.mask)):
            digest.update(_stamp(root, file))
    for file in lists:
        digest.update(_stamp(root, file))
    return digest.hexdigest()


def _stamp(root: Path, file: str) -> bytes:
    try:
        status = (root / file).stat()
    except OSError as error:
        raise _unreadable(root / file, error) from error
    return f"{file}\t{status.st_size}\t{status.st_mtime_ns}\n".encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file}: cannot be read ({error.strerror}); restore it, or take it off its list")


def prepare(
    name: str,
    root: Path,
    entries: Sequence[Entry],
    *,
    lists: Sequence[str] = (),
    prepared: Path | None = None,
    pack: Pack = _as_it_is,
    options: str = "",
    skip: bool = False,
) -> Path:
    """The folder of array_record files made from `entries`, in `prepared` (default: the user's cache).

    It is made on first use and again, under another name, when the listing, `lists`, a file's size or time or `options`
    changed. It appears complete or not at all, and of several processes one makes it. `pack` says what is stored of each
    entry; what it goes by belongs to `lists` or `options`. With `skip` an entry that it refuses is stored empty and
    named among the folder's notes. Raises DataError for files that cannot be read or used, an empty listing, or a folder
    that cannot be written. The source is only read.
    """
    if not entries:
        raise DataError(f"{root}: the lists of {name} name no image; check the data set's folder")
    where = default_prepared() if prepared is None else Path(prepared)
    folder = where / f"{name}-{_fingerprint(root, entries, lists, options)[:16]}"
    if folder.is_dir():
        return folder
    try:
        where.mkdir(parents=True, exist_ok=True)
        with only_one(where / f".{folder.name}.lock"):
            if not folder.is_dir():
                _make(folder, root, entries, pack, skip)
    except (OSError, RuntimeError) as error:  # the second is what the records' writer raises
        raise DataError(f"{where}: cannot be written ({error}); set data.prepared to a folder with room") from error
    return folder


def notes_of(folder: Path) -> Notes:
    """What was found out while a folder was packed. Raises DataError where that cannot be read."""
    try:
        stored = read_json(folder / _NOTES)
        copies, unreadable, sums = tuple(stored["copies"]), tuple(stored["unreadable"]), dict(stored.get("sums", {}))
        if not all(isinstance(name, str) for group in (*copies, unreadable, sums.values()) for name in group):
            raise TypeError("an id is no text")
        return Notes(tuple(map(tuple, copies)), unreadable, sums)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{folder / _NOTES}: cannot be read ({error}); delete the folder, and it is prepared anew"
        ) from error


def sums_of(folder: Path) -> Mapping[str, str]:
    """The sums of a packed folder's entries by id; none where an earlier version packed it. Raises DataError."""
    return notes_of(folder).sums if (folder / _NOTES).exists() else {}


def _make(folder: Path, root: Path, entries: Sequence[Entry], pack: Pack, skip: bool) -> None:
    others = sorted(other.name for other in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"))
    if others:
        log.warning("%s was prepared from another listing; preparing anew as %s", ", ".join(others), folder.name)
    log.info("preparing %d images of %s in %s", len(entries), root, folder)
    with _temporary(folder) as temporary:
        builder = _Builder(
            root=root, entries=entries, pack=pack, skip=skip, data_dir=temporary, file_format="array_record"
        )
        tfds.disable_progress_bar()  # ours knows the total
        try:
            with redirect_stdout(io.StringIO()):  # it would tell of a download, and name the temporary folder
                builder.download_and_prepare()
        finally:
            tfds.enable_progress_bar()
        (Path(builder.data_dir) / _NOTES).write_text(json.dumps(builder.notes._asdict()), encoding="utf-8")
        try:
            Path(builder.data_dir).rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise a process on another machine, past the lock, was first
                raise


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, for the holder of its lock; it goes afterwards, or with the next one after a kill.

    Its name holds the machine's: the lock may not reach other machines, and theirs may be in use.
    """
    temporary = folder.with_name(f".{folder.name}@{socket.gethostname()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class Records:
    """The records of a prepared folder, opened when first read, and anew in another process.

    Raises DataError where a record cannot be read.
    """

    folder: Path

    def __getitem__(self, index: int) -> dict[str, bytes]:
        try:
            if "_opened" not in self.__dict__:
                raw = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
                self._opened: Any = tfds.builder_from_directory(self.folder).as_data_source(_SPLIT, decoders=raw)
            record: dict[str, bytes] = self._opened[index]
        except Exception as error:  # TFDS, array_record and protobuf each have their own
            raise self._unreadable(index, str(error)) from error
        if record["id"] is None:  # what a file that was cut short may give
            raise self._unreadable(index, "it is empty")
        return record

    def _unreadable(self, index: int, reason: str) -> DataError:
        return DataError(
            f"{self.folder}: record {index} cannot be read ({reason}); delete the folder, and it is prepared anew"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}


@dataclass(frozen=True)
class PreparedSource:
    """The entries of a prepared folder, decoded by Pillow when they are read."""

    records: Records
    root: Path  # for messages: the files that the records were made from
    entries: tuple[Entry, ...]  # entry i is record i
    rule: MaskRule | ColourRule
    labels: bool = True

    @property
    def ids(self) -> Sequence[str]:
        """The entries' names, in the order of their list."""
        return tuple(entry.id for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry, record = self.entries[index], self.records[index]
        if record["id"].decode() != entry.id:
            raise DataError(f"{self.records.folder}: record {index} is not {entry.id}; delete the folder")
        image = decode_image(record["image"], str(self.root / entry.image))
        if not self.labels:
            return Example(entry.id, image)
        if not entry.mask:
            file = self.root / entry.image
            raise DataError(f"{file}: has no mask; add one, or keep {entry.id} out of the labelled part")
        label = decode_mask(record["mask"], str(self.root / entry.mask), image.shape, self.rule)
        return Example(entry.id, image, label)

    def without_labels(self) -> "PreparedSource":
        """The same images; masks stay undecoded."""
        return replace(self, labels=False)
