"""Makes the GPU's tables of docs/performance.md from what benchmarks/gpu.sh left in a folder. Needs nothing but Python.

    python benchmarks/gpu_tables.py runs/gpu

What was not measured says so. Only the text between the two marks in the page changes.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_plan import STEPS, Row

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- made by benchmarks/gpu_tables.py -->", "<!-- end of what it made -->"
MISSING = "not yet measured on a GPU"
ENCODERS = {"resnet101": "ResNet-101 OS16", "dinov2_small": "DINOv2-S + DPT", "dinov2_base": "DINOv2-B + DPT"}
HEADER = ("workload, bfloat16", "forec_jax", "PyTorch", "ratio", "images/s", "share of matmul", "peak MiB")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def workload(row: Row) -> str:
    """What is measured, in words."""
    encoder = ENCODERS[row.encoder] + (", frozen" if row.freeze else "")
    return f"{row.method}, {encoder}, {row.batch} x {row.crop}"


def step_cells(row: Row, measured: Mapping[str, Any] | None) -> list[str]:
    """A line of the table of step times: medians in milliseconds, both frameworks' figures side by side."""
    if measured is None:
        return [workload(row), MISSING, *["-"] * (len(HEADER) - 2)]
    found = [measured["frameworks"].get(name) for name in ("jax", "torch")]

    def both(key: str, digits: int) -> str:
        values = [known and known[key] for known in found]
        return " / ".join("-" if value is None else f"{value:,.{digits}f}" for value in values)

    times = [MISSING if known is None else f"{1000 * known['s/step']:.1f} ms" for known in found]
    ratio = f"{measured['jax_over_torch']:.2f}" if "jax_over_torch" in measured else "-"
    return [workload(row), *times, ratio, both("images/s", 1), both("share of matmul", 2), both("peak MiB", 0)]


def steps(results: Path) -> str:
    """The table of step times, and the machines that they are from."""
    rows, machines = [], set()
    for row in STEPS["full"]:
        file = results / "steps" / f"{row.name}.json"
        measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        rows.append(step_cells(row, measured))
        for known in (measured or {"frameworks": {}})["frameworks"].values():
            machines.add(f"{known['name']} ({known['version']}) on {known['device']}")
    source = f"Measured: {'; '.join(sorted(machines))}." if machines else f"Step times: {MISSING}."
    return f"{source}\n\n{table(HEADER, rows)}"


def suite(results: Path) -> str:
    """What the tests said."""
    for name, how in (("suite", ""), ("suite_cut_off", " when the time was up")):
        file = results / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            return "Tests on a GPU: {passed} passed, {failed} failed, {skipped} skipped".format(**found) + f"{how}."
    return "Tests on a GPU: not yet run."


def ladder(results: Path) -> str:
    """The tables of the sweep, as `forec-jax table --format=markdown` wrote them."""
    file = results / "ladder.md"
    if not file.exists():
        return f"The ladder of methods (`configs/sweeps/voc_gpu.toml`): {MISSING}."
    return f"The ladder of methods (`configs/sweeps/voc_gpu.toml`):\n\n{file.read_text(encoding='utf-8').strip()}"


def filled(page: str, results: Path) -> str:
    """The page with the tables between its marks made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    made = "\n\n".join((suite(results), steps(results), ladder(results)))
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def main(argv: list[str]) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder OUT of benchmarks/gpu.sh")
    parser.add_argument("--page", type=Path, default=PAGE)
    values = parser.parse_args(argv)
    values.page.write_text(filled(values.page.read_text(encoding="utf-8"), values.results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
