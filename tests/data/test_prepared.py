"""Packing that ends before its time."""

import os
import resource
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError
from forec_jax.data.prepared import Entry, prepare


@pytest.fixture
def pack(tmp_path):
    """Packs three images of some 30 KB each; `pack` sees every file."""
    (tmp_path / "raw").mkdir()
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 256, (100, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{k}.png")
    entries = [Entry(str(k), f"{k}.png") for k in range(3)]
    return lambda **options: prepare("toy", tmp_path / "raw", entries, prepared=tmp_path / "prepared", **options)


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "prepared").iterdir() if not path.name.endswith(".lock"))


def test_a_full_disk_is_explained_and_leaves_nothing(pack, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(DataError, match=r"prepared: cannot be written .*set data\.prepared to a folder with room"):
            pack()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == []
    assert pack().is_dir()


def test_what_a_killed_process_left_goes_with_the_next_one(pack, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a process that is killed tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            pack(pack=killed)
    (leftover,) = left(tmp_path)
    elsewhere = leftover.replace(socket.gethostname(), "another-machine")
    (tmp_path / "prepared" / elsewhere).mkdir()
    folder = pack()
    assert left(tmp_path) == sorted([elsewhere, folder.name])


def test_files_of_two_folders_that_are_alike_but_for_their_content_are_packed_apart(tmp_path):
    """An archive may give one time to all its files, and uncompressed pictures of one size are equally long."""
    for name, value in (("one", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / name / "a.bmp")
        os.utime(tmp_path / name / "a.bmp", (0, 0))
    folders = [prepare("toy", tmp_path / name, [Entry("a", "a.bmp")], prepared=tmp_path) for name in ("one", "other")]
    assert folders[0] != folders[1]
    assert prepare("toy", tmp_path / "one", [Entry("a", "a.bmp")], prepared=tmp_path) == folders[0]
