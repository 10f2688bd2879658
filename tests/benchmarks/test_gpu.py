"""What benchmarks/gpu.sh would run, and the tables that are made of its results. No benchmark is run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_plan
import gpu_tables
import pytest

BENCHMARKS = Path(gpu_plan.__file__).parent
SCRIPT = BENCHMARKS / "gpu.sh"


def dry_run(out, *parts, **environment):
    """What the script says, by line; it is called from the folder above `out`."""
    given = {"OUT": out.name, "PYTHON": sys.executable, "VOC": "", **environment}
    command = ["bash", SCRIPT, "--dry-run", *parts]
    found = subprocess.run(command, cwd=out.parent, env=os.environ | given, capture_output=True, text=True, check=True)
    return [line.partition("] ")[2] for line in found.stderr.splitlines()]


def test_the_script_is_clean():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    subprocess.run([shellcheck, SCRIPT], check=True)


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_a_dry_run_says_every_step_in_order_and_what_is_done(tmp_path, size):
    first, second, *_ = rows = gpu_plan.STEPS[size]
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / f"{first.name}.json").touch()
    said = dry_run(tmp_path, "steps", SIZE=size)
    assert said[0] == f"step {first.name}: done"
    assert said[1].startswith(f"step {second.name}: train_step.py --framework=")
    assert said[1].endswith(" ".join(second.flags))
    assert len(said) == len(rows) + 1
    assert [file.name for file in tmp_path.rglob("*")] == ["steps", f"{first.name}.json"]


def test_without_time_or_data_nothing_is_begun(tmp_path):
    assert dry_run(tmp_path, "ladder")[0] == "ladder: VOC is not set"
    assert dry_run(tmp_path, "ladder", VOC="devkit")[0].endswith(f"--config.data.root={tmp_path.parent}/devkit")
    assert all(line.endswith("no time is left") for line in dry_run(tmp_path, "steps", LIMIT="20")[:-1])


def test_every_test_file_is_there():
    assert all((BENCHMARKS.parent / path).exists() for path in gpu_plan.TESTS)


def test_names_are_unlike():
    for rows in gpu_plan.STEPS.values():
        assert len({row.name for row in rows}) == len(rows)


def test_tests_are_counted(tmp_path):
    report = tmp_path / "suite.xml"
    report.write_text(
        '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3" time="1.5"/></testsuites>',
        encoding="utf-8",
    )
    assert gpu_plan.counts(report) == {"passed": 3, "failed": 3, "skipped": 3, "seconds": 1.5}


def measured(*frameworks):
    known = {
        "version": "1",
        "device": "a GPU",
        "s/step": 0.1,
        "images/s": 80.0,
        "share of matmul": 0.25,
        "peak MiB": 2048,
    }
    found = {"frameworks": {name: {"name": name, **known} for name in frameworks}}
    return found | ({"jax_over_torch": 1.0} if len(frameworks) == 2 else {})


def test_what_was_measured_and_nothing_else_stands_in_the_tables(tmp_path):
    both, alone, *rest = gpu_plan.STEPS["full"]
    (tmp_path / "steps").mkdir()
    for row, found in ((both, measured("jax", "torch")), (alone, measured("jax"))):
        (tmp_path / "steps" / f"{row.name}.json").write_text(json.dumps(found))
    (tmp_path / "suite.json").write_text('{"passed": 5, "failed": 1, "skipped": 2, "seconds": 9.0}')
    (tmp_path / "ladder.md").write_text("| | mean |\n|---|---|\n| forec | 12.5 |\n")
    page = gpu_tables.filled(f"before {gpu_tables.BEGIN} old {gpu_tables.END} after", tmp_path)
    assert page.startswith("before ")
    assert page.endswith(" after")
    assert " old " not in page
    assert "5 passed, 1 failed, 2 skipped" in page
    assert "| forec | 12.5 |" in page
    cells = "100.0 ms | 100.0 ms | 1.00 | 80.0 / 80.0 | 0.25 / 0.25 | 2,048 / 2,048 |"
    assert f"| {gpu_tables.workload(both)} | {cells}" in page
    missing = gpu_tables.MISSING
    assert f"| {gpu_tables.workload(alone)} | 100.0 ms | {missing} | - | 80.0 / - | 0.25 / - | 2,048 / - |" in page
    assert page.count(missing) == 1 + len(rest)


def test_the_page_has_a_line_for_every_row():
    page = gpu_tables.PAGE.read_text(encoding="utf-8")
    for row in gpu_plan.STEPS["full"]:
        assert page.count(f"| {gpu_tables.workload(row)} |") == 1
