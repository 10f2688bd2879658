"""What a run tells survives a disk without room."""

import resource

import pytest

from forec_jax.training import Onlooker, Reporter
from forec_jax.training.reporting import METRICS_FILE, Lines, read_events


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


def test_without_room_tensorboard_ends_and_the_metrics_go_on(tmp_path, caplog, monkeypatch):
    reporter = Reporter(tmp_path, steps=40, first_step=0, images_per_step=1)
    monkeypatch.setattr("forec_jax.training.reporting.ROOM", 2**70)
    for step in range(40):  # more than the queue to TensorBoard's thread takes
        reporter.train(step, {"loss": 1.0})
    reporter.close()
    assert caplog.text.count("TensorBoard's events end here") == 1
    assert len(read_events(tmp_path / METRICS_FILE)) == 40


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
