"""What benchmarks/gpu.sh runs on a GPU, in its order, and what its parts leave behind. Needs nothing but Python.

python benchmarks/gpu_plan.py tests               # files of the suite, one a line
python benchmarks/gpu_plan.py steps --size=full   # rows of the step times: a name, a tab, flags of train_step.py
python benchmarks/gpu_plan.py counts suite.xml    # how many tests passed, failed and were skipped, as JSON
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

TESTS = (
    "tests/models/test_conv.py",
    "tests/models/test_layers.py",
    "tests/models/test_resize.py",
    "tests/models/test_deeplab.py",
    "tests/models/test_dinov2.py",
    "tests/augment",
    "tests/losses",
    "tests/benchmarks/test_torch_peer.py",
)
"""What computes on the device: convolutions, attention, resizing, augmentation, losses, and the step beside PyTorch's."""


@dataclass(frozen=True)
class Row:
    """A step whose time is measured, in bfloat16."""

    method: str
    encoder: str
    batch: int  # images a step, half of them labelled
    crop: int
    freeze: bool = False

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"{self.method}-{self.encoder}{'-frozen' if self.freeze else ''}-{self.batch}x{self.crop}"

    @property
    def flags(self) -> list[str]:
        """Of benchmarks/train_step.py."""
        flags = [
            f"--method={self.method}",
            f"--encoder={self.encoder}",
            f"--batch={self.batch}",
            f"--crop={self.crop}",
            "--output-stride=16",
            "--dtype=bfloat16",
        ]
        return flags + ["--freeze"] * self.freeze


def _of_dinov2(method: str, freeze: bool) -> list[Row]:
    """S and B at their published crop, 4 + 4 images as on each of UniMatch V2's GPUs."""
    return [Row(method, encoder, 8, 518, freeze) for encoder in ("dinov2_small", "dinov2_base")]


STEPS = {
    "full": (
        Row("forec", "resnet101", 16, 321),
        *_of_dinov2("unimatch_v2", freeze=False),
        *_of_dinov2("unimatch_v2", freeze=True),
        Row("mean_teacher", "resnet101", 16, 321),
        Row("forec", "resnet101", 16, 513),
        Row("mean_teacher", "resnet101", 16, 513),
        Row("unimatch_v2", "resnet101", 16, 321),
        Row("unimatch_v2", "resnet101", 16, 513),
        *_of_dinov2("mean_teacher", freeze=False),
        *_of_dinov2("forec", freeze=False),
        *_of_dinov2("mean_teacher", freeze=True),
        *_of_dinov2("forec", freeze=True),
    ),
    "tiny": (
        Row("forec", "vit_tiny", 4, 28),
        Row("unimatch_v2", "vit_tiny", 4, 28, freeze=True),
    ),
}
"""By size, what is worth most first: a run that is cut off has measured the first rows."""


def counts(file: Path) -> dict[str, float]:
    """The numbers in a JUnit report of pytest's, and its seconds."""
    suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    found = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = found["failures"] + found["errors"]
    return {
        "passed": found["tests"] - failed - found["skipped"],
        "failed": failed,
        "skipped": found["skipped"],
        "seconds": sum(float(suite.get("time", 0)) for suite in suites),
    }


def main(argv: list[str]) -> None:
    """Prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tests", "steps", "counts"))
    parser.add_argument("file", nargs="?", type=Path, help="of counts")
    parser.add_argument("--size", default="full", choices=tuple(STEPS))
    values = parser.parse_args(argv)
    if values.what == "tests":
        print("\n".join(TESTS))
    elif values.what == "steps":
        print("\n".join(f"{row.name}\t{' '.join(row.flags)}" for row in STEPS[values.size]))
    else:
        print(json.dumps(counts(values.file)))


if __name__ == "__main__":
    main(sys.argv[1:])
