"""Training batches on the host: batch n is a pure function of (seed, n).

Each stream shuffles its source anew every epoch, repeats for ever and gives every position of that endless sequence its
own random numbers. Row r of a stream's batch n is position n * size + r, so a run resumes by starting at a step, and
processes share a global batch by taking their own rows of it: there is no iterator state to save.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakSet

import grain
import numpy as np
from absl import flags
from grain.experimental import ZipMapDataset

from forec_jax.contracts import IGNORE, Batch, Labelled, Pseudo, Tagged, Unlabelled
from forec_jax.data.partial import KnownLabels
from forec_jax.data.source import DataError, Example, Source
from forec_jax.data.transforms import Cropped, Geometry
from forec_jax.options import at_least, option

OnCorrupt = Literal["raise", "skip"]
T = TypeVar("T")

_PARTS = ("labelled", "unlabelled", "tagged", "pseudo")  # the order fixes each stream's seed: a new part is the last
_STEPS = 2**40  # streams must have one length to be zipped; more steps than any run has
_OPEN: WeakSet[Generator[Any, None, None]] = WeakSet()  # iterators that have not ended


@dataclass(frozen=True)
class BatchOptions:
    """Rows a step, over all devices."""

    labelled: int = option(8, "labelled rows a step, over all devices", at_least(0))
    unlabelled: int = option(8, "unlabelled rows a step, over all devices; 0 for none", at_least(0))
    tagged: int = option(0, "rows with image-level tags a step, over all devices (configs/tags.py)", at_least(0))
    pseudo: int = option(0, "rows with the masks of data.pseudo a step, over all devices", at_least(0))


@dataclass(frozen=True)
class ReadingOptions:
    """How images are read."""

    workers: int = option(0, "processes that decode; 0: threads of this process", at_least(0))
    on_corrupt: OnCorrupt = option(
        "raise", 'an unreadable training image: "raise", or "skip" it, count it and take the next'
    )
    unlabelled_pairs: bool = option(
        False,
        "two unlabelled rows that follow each other are crops of one image (CPS's released code); of an even number",
    )


class _Row(NamedTuple):
    view: Cropped
    tags: np.ndarray | None
    skipped: int


@dataclass(frozen=True)
class _Read:
    """Index -> row: reads the example and applies the geometry."""

    part: str
    source: Source
    geometry: Geometry
    on_corrupt: OnCorrupt

    def __call__(self, index: int, rng: np.random.Generator) -> _Row:
        example, skipped = self._example(index)
        if self.part == "labelled" and example.label is None:
            raise DataError(f"{example.id} has no mask; add one, or move it to the unlabelled part")
        if self.part == "tagged" and example.tags is None:
            raise DataError(f"{example.id} has no tags; wrap the tagged source in WithTags")
        return _Row(self.geometry(example.image, example.label, rng, example.confidence), example.tags, skipped)

    def _example(self, index: int) -> tuple[Example, int]:
        """The example, or the next readable one, and how many were passed over."""
        for skipped in range(len(self.source)):
            try:
                return self.source[(index + skipped) % len(self.source)], skipped
            except DataError:
                if self.on_corrupt == "raise":
                    raise
        raise DataError(f"none of the {len(self.source)} {self.part} examples can be read; check the data set's folder")


def train_batches(
    *,
    labelled: Source | None,
    unlabelled: Source | None = None,
    tagged: Source | None = None,
    pseudo: Source | None = None,
    batch_labelled: int,
    batch_unlabelled: int = 0,
    batch_tagged: int = 0,
    batch_pseudo: int = 0,
    geometry: Geometry,
    seed: int,
    unlabelled_pairs: bool = False,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
    on_corrupt: OnCorrupt = "raise",
) -> Iterator[Batch]:
    """Batches `start_step`, `start_step + 1`, ... without end, as NumPy arrays.

    Batch sizes are global; the iterator gives the `process_index`-th of `process_count` contiguous blocks of rows and
    decodes no others. A stream of size 0 is None in the batch. `tagged` is a `WithTags`, `pseudo` a `WithPseudoLabels`.
    Masks are never opened for the unlabelled stream; from `KnownLabels` it takes what these say, and its rows are
    `Labelled`. `workers` processes decode (0: `threads` threads of this process do, by default one a core and at most 8); a
    script that sets it needs `if __name__ == "__main__":`, as the processes import it. With on_corrupt="skip" an unreadable
    example is replaced by the next readable one of its source and counted in `skipped`; otherwise its DataError is raised.
    With `unlabelled_pairs` rows 2i and 2i + 1 of the unlabelled stream show the same image, each by a geometry of its own.
    Raises DataError where sizes and sources do not fit together.
    """
    sources = (labelled, unlabelled, tagged, pseudo)
    sizes_of_parts = batch_labelled, batch_unlabelled, batch_tagged, batch_pseudo
    streams = _streams(sources, sizes_of_parts, seed, unlabelled_pairs)
    rows = []
    for stream in streams:
        elements = stream.order().random_map(_Read(stream.part, stream.source, geometry.of(stream.part), on_corrupt))
        rows += [elements[r : _STEPS * stream.size : stream.size] for r in stream.rows(process_index, process_count)]
    sizes = {stream.part: stream.size // process_count for stream in streams}
    batches = ZipMapDataset(rows).map(_Collate(sizes))[start_step:]
    return _iterate(batches, workers, min(8, os.cpu_count() or 1) if threads is None else threads)


def batch_ids(
    *,
    labelled: Source | None,
    unlabelled: Source | None = None,
    tagged: Source | None = None,
    pseudo: Source | None = None,
    batch_labelled: int,
    batch_unlabelled: int = 0,
    batch_tagged: int = 0,
    batch_pseudo: int = 0,
    seed: int,
    step: int,
    unlabelled_pairs: bool = False,
) -> dict[str, tuple[str, ...]]:
    """The ids of the global batch `step` by part ("labelled", ...), without reading an image.

    With on_corrupt="skip" a row marked `skipped` shows a later example than the one named here.
    """
    sources = (labelled, unlabelled, tagged, pseudo)
    sizes = batch_labelled, batch_unlabelled, batch_tagged, batch_pseudo
    streams = _streams(sources, sizes, seed, unlabelled_pairs)
    ids = {}
    for stream in streams:
        order, names = stream.order(), stream.source.ids
        ids[stream.part] = tuple(names[order[step * stream.size + r]] for r in range(stream.size))
    return ids


def evaluation_examples(
    source: Source, *, process_index: int = 0, process_count: int = 1, threads: int = 2
) -> Iterator[Example]:
    """The examples of `source` in order, whole, read ahead by `threads` threads; a process gets every count-th one."""
    indices = grain.MapDataset.range(process_index, len(source), process_count)
    return _until_closed(iter(indices.map(source.__getitem__).to_iter_dataset(_read_options(threads))))


class _Twice(grain.MapDataset[int]):
    """Each element of an endless data set two times, one after the other."""

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._parent[index // 2]


class _Stream(NamedTuple):
    part: str
    source: Source
    size: int  # rows of the global batch
    seed: int
    twice: bool  # whether each example fills two rows that follow each other

    def order(self) -> "grain.MapDataset[int]":
        """The endless sequence of indices."""
        once = grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle().repeat()
        return _Twice(once) if self.twice else once

    def rows(self, process_index: int, process_count: int) -> range:
        """The rows of the global batch that belong to a process."""
        if self.size % process_count:
            raise DataError(
                f"batch.{self.part}={self.size} cannot be shared by {process_count} processes; use a multiple of it"
            )
        share = self.size // process_count
        return range(process_index * share, (process_index + 1) * share)


def _streams(given: Sequence[Source | None], sizes: Sequence[int], seed: int, pairs: bool) -> list[_Stream]:
    """The streams that the batch has, each with a seed of its own; sources and sizes are in the order of the parts."""
    labelled, unlabelled, *others = given
    sources = (labelled, _blind(unlabelled), *others)
    seeds = np.random.SeedSequence(seed).generate_state(len(_PARTS), np.uint32)
    streams = []
    for part, source, size, stream_seed in zip(_PARTS, sources, sizes, seeds, strict=True):
        if size < 0:
            raise DataError(f"batch.{part}={size} is negative; use 0 for none")
        if size and not source:
            raise DataError(
                f"batch.{part}={size}, but there are no {part} images; add some or set batch.{part}=0"
                + (" by the variant supervised" if part == "unlabelled" else "")
            )
        if size and source:
            twice = pairs and part == "unlabelled"
            if twice and size % 2:
                raise DataError(f"batch.{part}={size} cannot be pairs (data.unlabelled_pairs); use an even number")
            streams.append(_Stream(part, source, size, int(stream_seed), twice))
    if not streams:
        raise DataError("every batch size is 0; set batch.labelled")
    return streams


def _blind(unlabelled: Source | None) -> Source | None:
    """The source of unlabelled rows, which opens no mask; of known labels, none but theirs."""
    if unlabelled is None or isinstance(unlabelled, KnownLabels):
        return unlabelled
    return unlabelled.without_labels()


@dataclass(frozen=True)
class _Collate:
    """Rows of all streams -> Batch."""

    sizes: dict[str, int]  # rows a part, in the streams' order

    def __call__(self, rows: Sequence[_Row]) -> Batch:
        parts: dict[str, Any] = {}
        first = 0
        for part, size in self.sizes.items():
            parts[part] = _stack(part, rows[first : first + size])
            first += size
        return Batch(**parts)


def _stack(part: str, rows: Sequence[_Row]) -> Labelled | Unlabelled | Tagged | Pseudo:
    image: Any = np.stack([row.view.image for row in rows])
    valid: Any = np.stack([row.view.valid for row in rows])
    skipped: Any = np.array([row.skipped for row in rows], np.int32)
    if part == "unlabelled" and rows[0].view.label is None:
        return Unlabelled(image, valid, skipped)
    if part == "tagged":
        tags: Any = np.stack([row.tags for row in rows if row.tags is not None])
        return Tagged(image, valid, tags, skipped)
    label: Any = np.stack([row.view.label for row in rows if row.view.label is not None], dtype=np.int32)
    if part == "pseudo":
        confidence: Any = np.stack([row.view.confidence for row in rows if row.view.confidence is not None])
        label = np.where(valid, label, IGNORE)
        return Pseudo(image, label, confidence, valid, skipped)
    return Labelled(image, label, valid, skipped)


def _iterate(batches: "grain.MapDataset[Batch]", workers: int, threads: int) -> Iterator[Batch]:
    if not workers:
        return _until_closed(iter(batches.to_iter_dataset(_read_options(threads))))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain passes absl flags on to its workers, and a notebook has none
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    read = batches.to_iter_dataset(_read_options(1)).mp_prefetch(options, worker_init_fn=_follow_the_parent)
    return _from_workers(_until_closed(iter(read)))


def _follow_the_parent(_worker: int, _workers: int) -> None:
    """Leaves to this worker's parent when it ends, and ends with it however that ends.

    Ctrl-C and schedulers signal every process, but what the parent reads next must still be there when it acts on that.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()  # returns once the parent is gone, even if it was before
        os._exit(1)


def _from_workers(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of worker processes, owned. Raises DataError where a worker was killed."""
    try:
        yield from map(_owned, batches)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise DataError(
            f"a process that decodes images was killed ({error}), most often for want of memory; rerun the command to go on "
            "with a smaller data.workers, or with 0 for threads"
        ) from error


def _owned(batch: Batch) -> Batch:
    """A copy out of the memory shared with a worker, which is taken back when the iterator ends."""
    parts: Sequence[Any] = batch
    return Batch(*(None if part is None else type(part)(*map(np.array, part)) for part in parts))


def _until_closed(iterator: "grain.DatasetIterator[T]") -> Iterator[T]:
    """The elements; the threads and processes behind them end with the iterator, at the latest at exit."""
    elements: Generator[T, None, None] = _elements(iterator)
    _OPEN.add(elements)
    return elements


def _elements(iterator: "grain.DatasetIterator[T]") -> Generator[T, None, None]:
    try:
        yield from iterator
    finally:
        iterator.close()


@atexit.register
def _close_all() -> None:
    """Closes what is still open before the interpreter takes the modules apart that closing needs."""
    for elements in list(_OPEN):
        elements.close()


def _read_options(threads: int) -> grain.ReadOptions:
    # An element is a whole batch: a deep buffer would hold gigabytes.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
