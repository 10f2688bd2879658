"""What a run tells survives a disk without room."""

import errno
import io
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

from forec_jax.training import Onlooker, Reporter
from forec_jax.training.reporting import METRICS_FILE, Board, Lines, read_events


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


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_stderr_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    reporter = Reporter(tmp_path, steps=9, first_step=0, images_per_step=1)
    reporter.train(4, {"loss": 1.0})
    reporter.advance(9)
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
