import itertools
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from forec_jax.contracts import IGNORE, UNLABELLED, Batch, Labelled
from forec_jax.data import (
    DataError,
    Example,
    Geometry,
    KnownLabels,
    WithTags,
    batch_ids,
    evaluation_examples,
    select,
    shapes_dataset,
    train_batches,
)

GEOMETRY = Geometry(33, (0.8, 1.2))


@dataclass(frozen=True)
class Numbers:
    """Images that show their index; some broken, some without a mask. Reading a mask it must not raises."""

    count: int
    broken: tuple[int, ...] = ()
    masks: str = "yes"  # "yes", "no", "forbidden"

    @property
    def ids(self):
        return [f"n{i}" for i in range(self.count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError(f"folder/n{index}.jpg: cannot be decoded")
        image = np.full((40, 40, 3), index, np.uint8)
        assert self.masks != "forbidden", "a mask was opened"
        return Example(f"n{index}", image, np.full((40, 40), index, np.uint8) if self.masks == "yes" else None)

    def without_labels(self):
        return Numbers(self.count, self.broken, "no")


def batches(count, *, source=None, **options):
    source = Numbers(10) if source is None else source
    defaults = {
        "labelled": source,
        "unlabelled": Numbers(17, masks="forbidden"),
        "batch_labelled": 4,
        "batch_unlabelled": 8,
        "geometry": GEOMETRY,
        "seed": 0,
    }
    return list(itertools.islice(train_batches(**{**defaults, **options}), count))


def flat(batch):
    return [array for part in batch if part is not None for array in part]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(flat(a), flat(b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def shown(part):
    """The indices that a part's rows show, at the top-left pixel, which is never padding."""
    return part.image[:, 0, 0, 0].tolist()


def test_the_form_of_a_batch():
    batch = batches(1)[0]
    assert isinstance(batch, Batch)
    assert [(a.shape, a.dtype) for a in batch.labelled] == [
        ((4, 33, 33, 3), np.uint8),
        ((4, 33, 33), np.int32),
        ((4, 33, 33), np.bool_),
        ((4,), np.int32),
    ]
    assert [(a.shape, a.dtype) for a in batch.unlabelled] == [
        ((8, 33, 33, 3), np.uint8),
        ((8, 33, 33), np.bool_),
        ((8,), np.int32),
    ]
    assert batch.tagged is None
    assert (batch.labelled.label[~batch.labelled.valid] == 255).all()
    assert batch.labelled.label[:, 0, 0].tolist() == shown(batch.labelled)


def test_pairs_of_unlabelled_rows_are_two_views_of_one_image():
    """The images come in the order that they have without pairs; a resumed run and a second process agree."""
    small = Geometry(33, (0.3, 0.8))  # so that the padding tells two views apart
    run = batches(5, unlabelled_pairs=True, geometry=small)
    firsts = [row for batch in run for row in shown(batch.unlabelled)[::2]]
    assert [row for batch in run for row in shown(batch.unlabelled)[1::2]] == firsts
    assert firsts == [row for batch in batches(3) for row in shown(batch.unlabelled)][:20]
    sizes = [batch.unlabelled.valid.sum((1, 2)) for batch in run]
    assert np.mean([size[::2] != size[1::2] for size in sizes]) > 0.8
    assert_equal(run[3:], batches(2, unlabelled_pairs=True, geometry=small, start_step=3))
    (second,) = batches(1, unlabelled_pairs=True, geometry=small, process_index=1, process_count=2)
    np.testing.assert_array_equal(second.unlabelled.image, run[0].unlabelled.image[4:])
    assert shown(run[0].labelled) == shown(batches(1)[0].labelled)
    sources = {"labelled": Numbers(10), "unlabelled": Numbers(17), "batch_labelled": 4, "batch_unlabelled": 8}
    ids = batch_ids(**sources, seed=0, step=1, unlabelled_pairs=True)["unlabelled"]
    assert ids == tuple(f"n{row}" for row in shown(run[1].unlabelled))
    with pytest.raises(DataError, match=r"batch.unlabelled=3 cannot be pairs \(data.unlabelled_pairs\)"):
        batches(1, unlabelled_pairs=True, batch_unlabelled=3)


def test_known_labels_come_with_the_unlabelled_rows_and_move_nothing_else():
    """Of 17 images the first 10 are labelled as well; the other masks stay closed."""
    known = KnownLabels(Numbers(17, masks="forbidden"), Numbers(10))
    plain, batch = batches(1)[0], batches(1, unlabelled=known)[0]
    assert isinstance(batch.unlabelled, Labelled)
    assert (batch.unlabelled.label.shape, batch.unlabelled.label.dtype) == ((8, 33, 33), np.int32)
    expected = [index if index < 10 else UNLABELLED for index in shown(batch.unlabelled)]
    assert batch.unlabelled.label[:, 0, 0].tolist() == expected
    assert {UNLABELLED} < set(expected)
    assert (batch.unlabelled.label[~batch.unlabelled.valid] == IGNORE).all()
    np.testing.assert_array_equal(batch.unlabelled.image, plain.unlabelled.image)
    np.testing.assert_array_equal(batch.unlabelled.valid, plain.unlabelled.valid)


def test_a_batch_is_a_function_of_seed_and_step():
    run = batches(12)
    assert_equal(run, batches(12))
    for step in (1, 5, 11):
        assert_equal(run[step:], batches(12 - step, start_step=step))
    assert any(not np.array_equal(a, b) for a, b in zip(flat(run[0]), flat(batches(1, seed=1)[0]), strict=True))


def test_every_epoch_shows_every_example_once_in_another_order():
    rows = [index for batch in batches(30, unlabelled=None, batch_unlabelled=0) for index in shown(batch.labelled)]
    epochs = [rows[i : i + 10] for i in range(0, 120, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 9


def test_a_repeated_example_is_seen_differently():
    run = batches(2, source=shapes_dataset(size=64, counts={"train": 1}).source("train"))
    images = [row for batch in run for row in batch.labelled.image]
    assert len({image.tobytes() for image in images}) == 8


def test_unlabelled_rows_are_cropped_alone_on_request():
    """Images of 40 pixels, crop 33, a scale of half: 20 by 20 pixels are valid; at their own size all are."""
    geometry = Geometry(33, (0.5, 0.5), unlabelled_plain=True)
    for batch in batches(3, geometry=geometry):
        assert (batch.labelled.valid.sum((1, 2)) == 20 * 20).all()
        assert batch.unlabelled.valid.all()
    assert geometry.of("unlabelled") == Geometry(33, (1.0, 1.0), flip=False, unlabelled_plain=True)
    assert geometry.of("pseudo") is geometry
    assert Geometry(33).of("unlabelled") == Geometry(33)


def test_streams_are_drawn_independently():
    run = batches(10, source=Numbers(16), unlabelled=Numbers(16), batch_unlabelled=4)
    assert [shown(b.labelled) for b in run] != [shown(b.unlabelled) for b in run]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_global_batch(processes):
    whole = batches(3, start_step=2)
    parts = [batches(3, start_step=2, process_index=i, process_count=processes) for i in range(processes)]
    for step in range(3):
        joined = [np.concatenate(arrays) for arrays in zip(*(flat(part[step]) for part in parts), strict=True)]
        for x, y in zip(joined, flat(whole[step]), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_process_decodes_only_its_rows():
    read = []

    class Counted(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batches(3, source=Counted(10), unlabelled=None, batch_unlabelled=0, process_count=4, threads=0)
    assert len(read) == 3


def test_ids_of_a_batch():
    run = batches(6)
    for step in (0, 5):
        ids = batch_ids(
            labelled=Numbers(10), unlabelled=Numbers(17), batch_labelled=4, batch_unlabelled=8, seed=0, step=step
        )
        assert ids["labelled"] == tuple(f"n{i}" for i in shown(run[step].labelled))
        assert ids["unlabelled"] == tuple(f"n{i}" for i in shown(run[step].unlabelled))


def test_parts_that_are_not_asked_for_are_none():
    batch = batches(1, batch_unlabelled=0)[0]
    assert batch.unlabelled is None
    batch = batches(1, batch_labelled=0)[0]
    assert batch.labelled is None


def test_tags_come_from_the_whole_mask_or_are_given():
    source = shapes_dataset(size=48).source("train")
    batch = batches(1, tagged=WithTags(source, 7), batch_tagged=3)[0]
    ids = batch_ids(labelled=None, tagged=source, batch_labelled=0, batch_tagged=3, seed=0, step=0)["tagged"]
    for tags, example in zip(batch.tagged.tags, select(source, ids), strict=True):
        assert np.flatnonzero(tags).tolist() == np.unique(example.label).tolist()
    assert batch.tagged.tags.dtype == np.float32
    given = WithTags(Numbers(5, masks="forbidden"), 3, {f"n{i}": (0, 2) for i in range(4)})
    assert given[1].tags.tolist() == [1, 0, 1]
    assert given[1].label is None
    with pytest.raises(DataError, match="n4 has no tags"):
        given[4]
    with pytest.raises(DataError, match="give `tags`"):
        WithTags(Numbers(5, masks="no"), 3)[0]


def test_a_broken_image_stops_the_run_and_is_named():
    with pytest.raises(DataError, match=r"folder/n3\.jpg"):
        batches(3, source=Numbers(10, broken=(3,)))


def test_a_broken_image_is_passed_over_and_counted_on_request():
    run = batches(20, source=Numbers(10, broken=(3, 4, 9)), on_corrupt="skip")
    plain = batches(20)
    replaced = {3: (5, 2), 4: (5, 1), 9: (0, 1)}
    for a, b in zip(run, plain, strict=True):
        expected = [replaced.get(index, (index, 0)) for index in shown(b.labelled)]
        assert shown(a.labelled) == [index for index, _ in expected]
        assert a.labelled.skipped.tolist() == [skipped for _, skipped in expected]
        assert a.unlabelled.skipped.sum() == 0


def test_nothing_readable():
    with pytest.raises(DataError, match="none of the 2 labelled"):
        batches(1, source=Numbers(2, broken=(0, 1)), on_corrupt="skip")


def test_a_labelled_row_without_a_mask():
    with pytest.raises(DataError, match="has no mask"):
        batches(1, source=Numbers(10, masks="no"))


def test_a_tagged_row_without_tags():
    with pytest.raises(DataError, match="WithTags"):
        batches(1, tagged=Numbers(3), batch_tagged=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 3}, "cannot be shared by 3 processes"),
        ({"unlabelled": None}, "no unlabelled images"),
        ({"unlabelled": Numbers(0)}, "no unlabelled images"),
        ({"batch_labelled": -1}, "negative"),
        ({"batch_labelled": 0, "batch_unlabelled": 0}, "every batch size is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        batches(1, **options)


def test_evaluation_reads_in_order_and_in_parts():
    source = Numbers(7)
    assert [example.id for example in evaluation_examples(source)] == source.ids
    parts = [list(evaluation_examples(source, process_index=i, process_count=2, threads=0)) for i in range(2)]
    assert [example.id for example in parts[1]] == ["n1", "n3", "n5"]
    assert len(parts[0]) == 4


def as_program(folder, text):
    """What starts a script that finds the library: worker processes need a main module of their own."""
    script = folder / "run.py"
    script.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return {"args": [sys.executable, str(script)], "env": environment}


def test_a_killed_worker_process_is_a_named_error(tmp_path):
    program = as_program(
        tmp_path,
        """
        import multiprocessing, os, signal
        from forec_jax.data import DataError, Geometry, shapes_dataset, train_batches

        if __name__ == "__main__":
            source = shapes_dataset(size=48, counts={"train": 20}).source("train")
            batches = train_batches(
                labelled=source, batch_labelled=2, geometry=Geometry(48), seed=0, workers=1
            )
            next(batches)
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            try:
                for _ in range(20):
                    next(batches)
            except DataError as error:
                print(error)
        """,
    )
    done = subprocess.run(**program, capture_output=True, text=True, timeout=300, check=False)
    assert "a process that decodes images was killed" in done.stdout, done.stderr
    assert "data.workers" in done.stdout


def test_worker_processes_pass_over_signals_and_end_with_their_parent(tmp_path):
    program = as_program(
        tmp_path,
        """
        import os, signal
        from forec_jax.data import Geometry, shapes_dataset, train_batches

        if __name__ == "__main__":
            source = shapes_dataset(size=48, counts={"train": 20}).source("train")
            batches = train_batches(labelled=source, batch_labelled=2, geometry=Geometry(48), seed=0, workers=1)
            next(batches)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
                os.killpg(0, number)
            for _ in range(20):  # more than was read ahead
                next(batches)
            print("went on", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(**program, start_new_session=True, **pipes)
    try:
        output, errors = process.communicate(timeout=120)  # waits for all that hold the pipes, the workers too
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert output == "went on\n", errors
    assert process.returncode == -signal.SIGKILL


def test_worker_processes_change_nothing_and_leave_quietly(tmp_path):
    program = as_program(
        tmp_path,
        """
        import numpy as np
        from forec_jax.data import Geometry, shapes_dataset, train_batches

        if __name__ == "__main__":
            source = shapes_dataset(size=48, counts={"train": 20}).source("train")
            options = dict(labelled=source, unlabelled=source, batch_labelled=2, batch_unlabelled=2, seed=0)
            plain = train_batches(**options, geometry=Geometry(48), start_step=3)
            working = train_batches(**options, geometry=Geometry(48), start_step=3, workers=2)
            for _ in range(5):
                a, b = next(plain), next(working)
                for x, y in zip([*a.labelled, *a.unlabelled], [*b.labelled, *b.unlabelled], strict=True):
                    np.testing.assert_array_equal(x, y)
                assert b.tagged is None
            print("equal")
        """,
    )
    done = subprocess.run(**program, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr
    assert "Exception ignored" not in done.stderr
    assert "leaked" not in done.stderr
