import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forec_jax import files
from forec_jax.files import cache_folder, sha256_of, to_json, write_json, write_whole


def nobody(_):
    raise KeyError("uid not found")


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """No HOME, no entry of the user id, and a temporary folder of one's own."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_cache_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/forec_jax")


@pytest.mark.parametrize("name", ["", "here", "./here"])
def test_a_cache_named_by_an_empty_or_relative_path_is_the_homes(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "forec_jax"


def test_an_unknown_user_without_a_home_has_a_private_folder(stranger):
    folder = cache_folder()
    assert folder == stranger / f"forec_jax-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


def test_a_home_that_cannot_be_written_to_gives_no_cache(stranger, monkeypatch):
    """OpenShift sets HOME=/ for its random users."""
    monkeypatch.setenv("HOME", "/home/of/nobody")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder().parent == stranger


def test_a_folder_that_others_can_write_to_is_no_cache(stranger):
    planted = stranger / f"forec_jax-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    folder = cache_folder()
    assert folder != planted
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_to_a_folder_is_no_cache(stranger):
    (stranger / "elsewhere").mkdir(mode=0o700)
    (stranger / f"forec_jax-{os.getuid()}").symlink_to(stranger / "elsewhere")
    assert cache_folder().parent == stranger
    assert not cache_folder().is_symlink()


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_whole(tmp_path / "a", b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"old")]


def test_json_holds_null_for_what_is_not_finite(tmp_path):
    content = {"miou": float("nan"), "iou": [1.0, np.float64("inf"), (float("-inf"), 2)], "step": 3}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"miou": None, "iou": [1.0, None, [None, 2]], "step": 3}
    assert to_json(content).count("null") == 3


def test_a_files_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_it_loads_without_anything_heavy():
    script = "import sys, forec_jax.files; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
