"""A long training watched from outside: does its memory, its number of open files, or its time a step grow?

    python benchmarks/soak.py --steps=20000 --workdir=runs/soak --json

Trains FOrec on the embedded shapes data with a tiny network, so that everything that a run does again and again
(batches, steps, metrics, checkpoints, evaluations) happens often. Linux only. Slopes are of a straight line through the
samples after the first fifth, in which caches fill. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TINY = (
    "--config.data.shapes.size=48",
    "--config.data.crop=33",
    "--config.data.labelled=16:0",
    "--config.eval.split=tune",
    "--config.eval.bucket=64",
    "--config.model.width=0.125",
    "--config.model.decoder.channels=8",
    "--config.model.decoder.low_level_channels=4",
)


class Sample(NamedTuple):
    """What the process holds at a moment."""

    step: int
    mib: float  # resident memory
    files: int  # open file descriptors
    threads: int


def sample(process: int, step: int) -> Sample:
    """The process now. Raises FileNotFoundError where it has ended."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    )
    files = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    return Sample(step, int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]))


def train_events(workdir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl that are about steps."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == "train"]


def slope(x: list[float], y: list[float]) -> float:
    """Of the line of least squares."""
    return float(np.polyfit(x, y, 1)[0])


def watch(command: list[str], workdir: Path, every: float) -> list[Sample]:
    """Runs a training to its end; what it held, sampled every so many seconds from its first metrics on."""
    samples = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(every)
            if events := train_events(workdir):
                try:
                    samples.append(sample(process.pid, events[-1]["step"]))
                except (FileNotFoundError, KeyError, PermissionError):  # it has just ended
                    break
    if process.wait():
        raise SystemExit(f"the training ended with exit code {process.returncode}: {' '.join(command)}")
    return samples


def summary(samples: list[Sample], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes over the samples after the first fifth of the steps."""
    settled = [s for s in samples if s.step >= samples[-1].step / 5]
    steps = [s.step / 1000 for s in settled]
    rates = [(e["step"] / 1000, 1000 / e["images_per_second"]) for e in events if e["step"] >= samples[-1].step / 5]
    return {
        "steps": events[-1]["step"],
        "samples": len(settled),
        "mib_first": settled[0].mib,
        "mib_last": settled[-1].mib,
        "mib_per_1000_steps": slope(steps, [s.mib for s in settled]),
        "files": sorted({s.files for s in settled}),
        "threads": sorted({s.threads for s in settled}),
        "ms_per_image_median": float(np.median([ms for _, ms in rates])),
        "ms_per_image_per_1000_steps": slope(*map(list, zip(*rates, strict=True))),
    }


def main(argv: list[str]) -> dict[str, Any]:
    """Runs and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="new folder of the training run")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)
    options = [f"--workdir={values.workdir}", *TINY, f"--config.steps={values.steps}"]
    often = [f"--config.{key}={values.steps // 40}" for key in ("evaluate_every", "checkpoint_every")]
    command = [sys.executable, "-m", "forec_jax", "train", "--config=configs/shapes.py:forec", *options, *often]
    samples = watch(command, values.workdir, values.every)
    result = summary(samples, train_events(values.workdir))
    if not values.json:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
