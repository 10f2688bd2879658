"""The README's training lines do what they say; test_face.py has those in Python."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_run import TINY

from forec_jax import cli

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_training_lines_run(tmp_path, monkeypatch):
    """With a tiny network, for a few steps."""
    tiny = [option for option in TINY if "eval.split" not in option]  # the lines ask for images of val
    monkeypatch.chdir(tmp_path)
    (lines,) = [
        block.splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) if "shapes.py" in block
    ]
    assert len(lines) == 5
    for line in lines:
        program, command, *rest = shlex.split(line)
        assert program == "forec-jax"
        assert cli.run([command, *rest, *(tiny if command == "train" else [])]) == 0
    assert len(list(Path("seen").glob("val_*.png"))) == 2
    assert Path("confusion.png").is_file()
