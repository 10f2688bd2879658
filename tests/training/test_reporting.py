"""What a run tells survives a disk without room."""

import errno
import io
import json
import math
import os
import resource
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from forec_jax.training import Onlooker, Reporter
from forec_jax.training.events import METRICS_FILE, Lines, cut_back, read_events
from forec_jax.training.optimizer import poly_schedule
from forec_jax.training.reporting import BAR, Board, evaluation_line, in_short
from forec_jax.training.scores import Best, best_of, is_better
from forec_jax.training.watch import PATIENCE, PseudoLabelWatch


def test_lines_wait_in_memory_until_the_disk_has_room(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = Lines(tmp_path / "a")
    lines.write("first")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
        lines.write("second")
        lines.write("third")
        during = (tmp_path / "a").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines.write("fourth")
    lines.close()
    assert during == "first\nsec"
    assert "cannot be written" in caplog.text
    assert (tmp_path / "a").read_text() == "first\nsecond\nthird\nfourth\n"


def test_without_room_tensorboard_ends_and_the_run_goes_on(tmp_path):
    """In a process of its own, which a thread or a queue that nobody empties would keep for ever."""
    script = """
        import logging, resource, sys
        from pathlib import Path
        import numpy as np
        from forec_jax.training import Reporter

        logging.basicConfig()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        reporter = Reporter(Path(sys.argv[1]), steps=40, first_step=0, images_per_step=1)
        for step in range(40):
            reporter.picture(step, "a", np.random.default_rng(step).integers(0, 256, (300, 300, 3), np.uint8))
            reporter.train(step, {"loss": 1.0})
        reporter.close()
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TensorBoard's events end here") == 1
    assert "Exception" not in done.stderr
    assert len(read_events(tmp_path / METRICS_FILE)) == 40


def events_in(folder):
    """The events of TensorBoard's file: size, its checksum, event, its checksum, and so on."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, events = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[size + 16 :]
    return events


def test_tensorboard_sees_what_its_usual_writer_writes(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    board = Board(tmp_path / "ours", first_step=3)
    board.scalar("train/loss", 0.5, 4)
    board.picture("a", picture, 5)
    board.close()
    with SummaryWriter(str(tmp_path / "usual"), purge_step=3) as usual:
        usual.add_scalar("train/loss", 0.5, 4)
        usual.add_image("a", picture, 5, dataformats="HWC")
    ours, theirs = events_in(tmp_path / "ours"), events_in(tmp_path / "usual")
    assert ours[0].file_version == theirs[0].file_version
    assert [e.step for e in ours if e.session_log.status == SessionLog.START] == [3]
    assert [e.step for e in theirs if e.session_log.status == SessionLog.START] == [3]
    for own, other in zip(ours[-2:], theirs[-2:], strict=True):
        assert (own.step, own.summary) == (other.step, other.summary)
        assert abs(own.wall_time - other.wall_time) < 3600


def test_tensorboard_shows_the_learning_rate_and_every_classs_iou(tmp_path):
    rate = poly_schedule(0.5, steps=10, power=1.0, warmup=0)
    reporter = Reporter(tmp_path, steps=10, first_step=0, images_per_step=1, classes=("cat", "dog"), rate=rate)
    reporter.train(5, {"loss": 1.0})
    reporter.evaluation(5, {"teacher_miou": 0.25, "teacher_iou": [0.25, math.nan]})
    reporter.close()
    values = {v.tag: v.simple_value for e in events_in(tmp_path / "tensorboard") for v in e.summary.value}
    assert values["train/learning_rate"] == pytest.approx(0.3)  # of the fifth step: 0.5 * (1 - 4/10)
    assert values["evaluation/teacher_iou/cat"] == 0.25
    assert "evaluation/teacher_iou/dog" not in values  # no pixel of it was there to count
    assert json.loads((tmp_path / METRICS_FILE).read_text().splitlines()[0])["learning_rate"] == pytest.approx(0.3)


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_stderr_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    reporter = Reporter(tmp_path, steps=9, first_step=0, images_per_step=1)
    reporter.train(4, {"loss": 1.0})
    reporter.advance(9, {})
    reporter.message("a line")
    reporter.close()
    assert len(read_events(tmp_path / METRICS_FILE)) == 1


def test_an_onlooker_knows_the_events_and_writes_nothing(tmp_path):
    reporter = Reporter(tmp_path, steps=9, first_step=0, images_per_step=1)
    reporter.evaluation(3, {"teacher_miou": 0.5})
    reporter.evaluation(6, {"teacher_miou": 0.7})
    before = (tmp_path / METRICS_FILE).read_text()
    onlooker = Onlooker(tmp_path, steps=9, first_step=3, images_per_step=1)
    onlooker.train(4, {"loss": 1.0})
    onlooker.evaluation(6, {"teacher_miou": 0.6})
    onlooker.close()
    reporter.close()
    assert [event["teacher_miou"] for event in onlooker.events] == [pytest.approx(0.5), pytest.approx(0.6)]
    assert (tmp_path / METRICS_FILE).read_text() == before


def logged(path, *events):
    path.write_text("".join(json.dumps({"event": "train", **event}) + "\n" for event in events))
    return path


STEPS = [{"step": step} for step in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "damage",
    [b"\xff", b"\x00", b"", b'{"event": "train"}', b'{"step": 2}', b"[]", b"2", b'{"event": "train", "step": "2"}'],
)
def test_a_damaged_line_costs_itself_alone_and_a_copy_is_kept(tmp_path, caplog, damage):
    metrics = logged(tmp_path / METRICS_FILE, *STEPS)
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(before := b"".join([lines[0], damage + b"\n", *lines[2:]]))
    assert [event["step"] for event in cut_back(metrics, 3)] == [1, 3]
    assert [event["step"] for event in read_events(metrics)] == [1, 3]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert "line 2 cannot be read" in caplog.text
    assert "metrics.jsonl.damaged" in caplog.text


def test_every_damaged_file_has_a_copy_of_its_own(tmp_path):
    for text in ("a\n", "b\n"):
        (tmp_path / METRICS_FILE).write_text(text)
        cut_back(tmp_path / METRICS_FILE, 3)
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == "a\n"
    assert (tmp_path / "metrics.jsonl.damaged2").read_text() == "b\n"


def test_a_line_that_a_kill_cut_short_is_no_damage(tmp_path, caplog):
    metrics = logged(tmp_path / METRICS_FILE, *STEPS)
    metrics.write_bytes(metrics.read_bytes()[:-5])
    assert [event["step"] for event in cut_back(metrics, 9)] == [1, 2, 3]
    assert not caplog.records
    assert [file.name for file in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_last_line_without_its_end_is_an_event(tmp_path):
    metrics = logged(tmp_path / METRICS_FILE, *STEPS)
    metrics.write_bytes(metrics.read_bytes()[:-1])
    assert len(read_events(metrics)) == 4


def test_a_start_at_step_0_over_a_log_of_evaluations_is_told_and_loses_nothing(tmp_path, caplog):
    metrics = logged(tmp_path / METRICS_FILE, {"step": 3}, {"step": 3, "event": "evaluation", "student_miou": 0.2})
    before = metrics.read_bytes()
    assert cut_back(metrics, 0) == []
    assert "goes on to step 3, but no checkpoint is there" in caplog.text
    assert (tmp_path / "metrics.jsonl.before").read_bytes() == before


def test_numbers_that_are_not_finite_are_null_in_the_log_and_none_to_the_run(tmp_path):
    reporter = Reporter(tmp_path, steps=9, first_step=0, images_per_step=1)
    reporter.evaluation(3, {"teacher_miou": math.nan, "teacher_iou": [math.nan, 0.5]})
    reporter.close()
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == reporter.events[0]
    assert (reporter.events[0]["teacher_miou"], reporter.events[0]["teacher_iou"]) == (None, [None, 0.5])


@pytest.mark.parametrize(
    ("score", "best", "better"),
    [
        (0.1, None, True),
        (None, None, True),
        (0.1, Best(3, None), True),
        (None, Best(3, None), True),
        (0.2, Best(3, 0.1), True),
        (0.1, Best(3, 0.1), False),
        (None, Best(3, 0.1), False),
    ],
)
def test_a_score_beats_none_and_a_lower_one(score, best, better):
    assert is_better(score, best) == better


def test_the_best_of_a_log_is_the_teachers_and_passes_over_what_has_no_score():
    scores = [(3, None, 0.9), (6, 0.5, 0.1), (9, math.nan, 0.9), (12, 0.4, 0.9)]
    events = [{"event": "evaluation", "step": s, "teacher_miou": t, "student_miou": u} for s, t, u in scores]
    assert best_of([*events, {"event": "train", "step": 13}]) == Best(6, 0.5)
    assert best_of([]) is None
    assert best_of([{"event": "evaluation", "step": 3, "student_miou": 0.2}]) == Best(3, 0.2)


def test_an_evaluation_in_a_line():
    results = {"teacher_miou": 0.4842, "teacher_iou": [0.376, None], "student_miou": 0.1, "student_iou": [0, 0]}
    assert evaluation_line(300, results, 0.5, ("cat", "dog")) == "step 300  mIoU 48.4 (best 50.0)  cat 37.6  dog -"
    assert evaluation_line(300, {"student_miou": None, "student_iou": []}, None, ()) == "step 300  mIoU - (best -)"


def test_of_many_classes_the_worst_are_named():
    results = {"teacher_miou": 0.5, "teacher_iou": [None, *(k / 10 for k in range(7, 0, -1))]}
    line = evaluation_line(1, results, 0.5, "abcdefgh")
    assert line == "step 1  mIoU 50.0 (best 50.0)  lowest: h 10.0  g 20.0  f 30.0  e 40.0  d 50.0  c 60.0"


def test_the_bar_fits_80_columns():
    metrics = {"gradient_norm": 1.0, "kept": 0.12345, "supervised_loss": 1.0, "loss": 12.3456}
    short = in_short(metrics, 1234.56)
    assert short == "loss 12.346, kept 0.123, 1235 images/s"
    assert in_short({"loss": 0.5}, 12.34) == "loss 0.500, 12.3 images/s"
    bar = BAR.replace("{bar:6}", "######")  # which is drawn on a terminal alone
    line = tqdm.format_meter(12345, 40000, 3600 * 9, bar_format=bar, postfix=short)
    assert line == "step 12345/40000 |######| 20:09:41 left, loss 12.346, kept 0.123, 1235 images/s"
    assert len(line) <= 80


def test_what_is_left_counts_neither_the_first_step_nor_evaluations(tmp_path):
    """A step takes a second, the first one 100 with its compilation, an evaluation 1000."""
    reporter = Reporter(tmp_path, steps=100, first_step=0, images_per_step=1)
    bar = reporter._bar
    bar.start_t, bar.last_print_t = 0.0, 0.0
    now = 100.0
    bar._time = lambda: now
    reporter.advance(1, {})
    for step in range(2, 51):
        now += 1
        reporter.advance(step, {})
    now += 1000
    reporter.evaluation(50, {"teacher_miou": 0.5})
    for step in range(51, 61):
        now += 1
        reporter.advance(step, {})
    assert bar.format_dict["rate"] == pytest.approx(1.0)
    assert bar.format_dict["elapsed"] == pytest.approx(59)
    reporter.close()


def seen(watch, steps, kept):
    for step in range(steps):
        watch.see({"kept": kept, "confidence": 0.46 + 0.02 * (step % 2)})


def test_a_run_without_pseudo_labels_is_told_once_what_to_do(caplog):
    watch = PseudoLabelWatch(0.95)
    seen(watch, PATIENCE - 1, 0.0)
    assert not caplog.records
    seen(watch, 1, 0.0)
    seen(watch, 10 * PATIENCE, 0.0)
    seen(watch, 1, 0.5)
    seen(watch, PATIENCE, 0.0)
    (record,) = caplog.records
    text = record.getMessage()
    assert "method.threshold=0.95 in 50 steps (the teacher's mean confidence is 0.47)" in text
    assert "model.weights" in text
    assert len(text.splitlines()) <= 3


def test_a_step_that_keeps_some_starts_the_count_anew(caplog):
    watch = PseudoLabelWatch(0.95)
    for kept, steps in ((0.0, PATIENCE - 1), (0.01, 1), (0.0, PATIENCE - 1)):
        seen(watch, steps, kept)
    assert not caplog.records


def test_a_method_without_pseudo_labels_is_not_warned(caplog):
    watch = PseudoLabelWatch()
    for _ in range(2 * PATIENCE):
        watch.see({"loss": 1.0})
    assert not caplog.records


def test_the_watch_waits_for_the_start_of_the_pseudo_labels(tmp_path, caplog):
    reporter = Reporter(tmp_path, steps=PATIENCE, first_step=0, images_per_step=1, threshold=0.9, start=1)
    for step in range(PATIENCE + 1):
        assert not caplog.records
        reporter.advance(step + 1, {"kept": 0.0, "confidence": 0.3})
    reporter.close()
    assert "no pseudo-label passed" in caplog.text


def test_the_loop_shows_every_step_to_the_watch(tmp_path, caplog):
    reporter = Reporter(tmp_path, steps=PATIENCE, first_step=0, images_per_step=1, threshold=0.9)
    for step in range(PATIENCE):
        reporter.advance(step + 1, {"kept": 0.0, "confidence": 0.3})
    reporter.close()
    assert "method.threshold=0.9 in 50 steps" in caplog.text
