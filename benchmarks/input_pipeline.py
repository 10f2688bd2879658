"""Images a second from a prepared data set to batches, by worker count, beside a PyTorch DataLoader doing the same work.

    python benchmarks/input_pipeline.py --root=VOCdevkit --crop=321 --workers=0,1,2 --json

Both decode the same JPEG and PNG bytes, scale, crop, flip and stack; the DataLoader reads the library's prepared records
through the same source, so that what differs is the loader alone. Workers 0 is this process: threads of the library's,
none of PyTorch's. The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import numpy as np
from measure import table

from forec_jax.cli import use_huge_pages
from forec_jax.config import defaults
from forec_jax.data import Geometry, Source, train_batches
from forec_jax.experiment import sources


def prepared_source(root: str, split: str, prepared: str) -> Source:
    """A split of VOC, or of the embedded shapes data where no root is given."""
    c = defaults()
    c.data.update({"name": "voc" if root else "shapes", "root": root, "prepared": prepared})
    return sources.build_dataset(c).source(split)


def library_batches(
    source: Source, geometry: Geometry, batch: int, workers: int, threads: int | None
) -> Generator[Any, None, None]:
    """The library's pipeline, which ends with this generator."""
    yield from train_batches(
        labelled=source, batch_labelled=batch, geometry=geometry, seed=0, workers=workers, threads=threads
    )


class TorchRows:
    """A map-style data set of views, as a DataLoader takes it."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self._source, self._geometry = source, geometry

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self._source[index]
        view = self._geometry(example.image, example.label, np.random.default_rng())
        # PyTorch takes neither the negative strides of a mirrored view nor None.
        return {name: np.array(value) for name, value in view._asdict().items() if value is not None}


def torch_batches(
    source: Source, geometry: Geometry, batch: int, workers: int, threads: int | None
) -> Generator[Any, None, None]:
    """PyTorch's, shuffled and without end."""
    del threads
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        TorchRows(source, geometry),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def rate(batches: Generator[Any, None, None], batch: int, seconds: float) -> tuple[float, float]:
    """Images a wall-clock second, and a second of processor time of this process and its children that have ended."""
    for _ in range(3):
        next(batches)
    start, busy = time.perf_counter(), time.process_time()
    count = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += batch
    return count / elapsed, count / max(time.process_time() - busy, 1e-9)


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="", help="the folder that holds VOC2012/; empty: the embedded shapes data")
    parser.add_argument("--prepared", default="", help="as data.prepared")
    parser.add_argument("--split", default="train")
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes")
    parser.add_argument(
        "--threads", type=int, default=None, help="of the library's, with 0 workers; by default one a core"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--framework", default="both", choices=("jax", "torch", "both"))
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    source, geometry = prepared_source(values.root, values.split, values.prepared), Geometry(values.crop)
    loaders = {"jax": ("forec_jax", library_batches), "torch": ("DataLoader", torch_batches)}
    rows = []
    for workers in map(int, values.workers.split(",")):
        for name, make in [loaders[key] for key in loaders if values.framework in (key, "both")]:
            batches = make(source, geometry, values.batch, workers, values.threads)
            wall, processor = rate(batches, values.batch, values.seconds)
            batches.close()
            # With workers the work is done elsewhere: this process's own time says nothing.
            a_core = wall / min(workers, os.cpu_count() or 1) if workers else processor
            rows.append({"loader": name, "workers": workers, "images/s": wall, "images/s a core": a_core})
    result = {"images": len(source), "crop": values.crop, "batch": values.batch, "rows": rows}
    if not values.json:
        print(f"{len(source)} images, crop {values.crop}, batch {values.batch}\n\n{table(rows)}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])
