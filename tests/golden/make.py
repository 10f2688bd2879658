"""The numbers of two training steps of each variant, and of the state after them, on tiny networks.

    python tests/golden/make.py                    compares with tests/golden/metrics.json
    python tests/golden/make.py --exact            bit by bit, as the machine that made the file promises
    python tests/golden/make.py --write            makes the file anew: only for a change that is meant to change numbers
    python tests/golden/make.py --only=shapes:forec    this case; with --write the others keep their numbers

The file was made by the code before the redesign, but for cases that came later or whose commits say why; numbers are
written as `float.hex` does. Options have the names that they had then.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from forec_jax.config import check_options, chosen, load_config
from forec_jax.contracts import TrainState
from forec_jax.experiment import build, sources
from forec_jax.experiment.load import guide_of
from forec_jax.experiment.run import Built, val_of
from forec_jax.experiment.workdir import begin
from forec_jax.parallel import make_mesh, shard_batch
from forec_jax.training import Checkpoints, compile_step, create_state, state_sharding

Options = dict[str, Any]
Numbers = dict[str, float]
Allowed = Callable[[int, str], float]  # step 1 or 2 or the state (3), name -> relative difference

FILE = Path(__file__).parent / "metrics.json"
RTOL, ATOL = 2e-4, 1e-6  # between machines, whose instructions add in another order
_SECOND_STEP, _GRADIENTS = 1e-2, 0.25  # relative, for what rounding grows into: BatchNorm sees two values in the ASPP's
# image pooling, and a step with momentum. Most seen between an Intel and an AMD processor: 4e-3 and 0.16.

_TINY: Options = {
    "steps": 4,
    "optim.warmup": 0,
    "data.size": 48,
    "data.crop": 33,
    "model.encoder": "resnet18",
    "model.width": 0.125,
}
_DEEPLAB: Options = {"model.decoder.channels": 8, "model.decoder.low_level_channels": 4}
_LABELLED: Options = {"batch.labelled": 2, "data.labelled": "8:0"}
_BOTH: Options = {**_LABELLED, "batch.unlabelled": 2, "method.threshold": 0.0}
_RECONSTRUCTION: Options = {"auxiliary.reconstruction.threshold": 0.0}
_OHEM: Options = {"method.supervised_loss": "ohem", "method.ohem_threshold": 0.15, "method.ohem_min_kept": 64}
_FOREGROUND: Options = {"auxiliary.foreground_segmentation.threshold": 0.0}
_RECO: Options = {
    "auxiliary.reco.channels": 8,
    "auxiliary.reco.queries": 4,
    "auxiliary.reco.negative_keys": 8,
    "auxiliary.reco.pixel_threshold": 0.0,
}
_PS_MT: Options = {**_BOTH, "method.ps_mt.warmup": 1}
_PARTIAL: Options = {"batch.labelled": 2, "method.threshold": 0.0}
_TAGS: Options = {"batch.tagged": 4}

CLASSIFIER = "tags:classifier"
CASES: dict[str, Options] = {
    "shapes:supervised": _LABELLED,
    "shapes:supervised ohem": {**_LABELLED, **_OHEM},
    "shapes:mean_teacher": _BOTH,
    "shapes:forec": {**_BOTH, **_RECONSTRUCTION},
    "shapes:ps_mt": _PS_MT,
    "shapes:ps_mt_forec": {**_PS_MT, **_RECONSTRUCTION},
    "shapes:ps_mt_paper": {**_PS_MT, "method.ps_mt.warmup_passes": 0, "method.ps_mt.top_classes": 2},
    "shapes:s4gan": {**_BOTH, "method.s4gan.channels": 4},
    "shapes:s4gan_forec": {**_BOTH, **_RECONSTRUCTION, "method.s4gan.channels": 4},
    "shapes:s4gan_paper": {**_BOTH, "method.s4gan.channels": 4},
    "shapes:cutout": _BOTH,
    "shapes:cutmix": _BOTH,
    "shapes:classmix": _BOTH,
    "shapes:reconstruction": _BOTH,
    "shapes:reconstruction_only": _BOTH,
    "shapes:foreground_segmentation": {**_BOTH, **_FOREGROUND},
    "shapes:reco": {**_BOTH, **_RECO},
    "shapes:reco_forec": {**_BOTH, **_RECO, **_RECONSTRUCTION},
    "shapes:reco_paper": {**_BOTH, **_RECO},
    "shapes:eta": {**_BOTH, "method.threshold": 0.3},
    "shapes:partial_1px": _PARTIAL,
    "shapes:forec+other_lambdas": {**_BOTH, **_RECONSTRUCTION},
    "shapes:forec+u2pl_model": {**_BOTH, **_RECONSTRUCTION},
    "shapes:forec+share_aspp": {**_BOTH, **_RECONSTRUCTION},
    "shapes:small": {**_BOTH, "model.encoder": "mobilenet_v2", "model.width": 0.25},
    CLASSIFIER: _TAGS,
    "tags:wsss": _TAGS,
    "tags:wsss+no_reconstruction": _TAGS,
    "tags:wsss+size_penalty": _TAGS,
    "tags:wsss unet": {**_TAGS, "model.encoder": "unet"},
}
"""What a case sets beside the tiny network. FILE:VARIANT; a word after a space tells two cases of a variant apart.

Each wsss is guided by the classifier after its two steps.
"""


def two_steps(case: str, folder: Path) -> list[Numbers]:
    """The metrics of two steps on one device, then the sums of the state after them.

    `folder` is where the classifier is kept for those that it guides; it is trained when the first of them asks.
    """
    built = build_case(case, folder)
    c, mesh, tx = built.config, built.mesh, build.build_optimizer(built.config)
    sharding = state_sharding(built.method, tx, c.seed, mesh)
    state = create_state(built.method, tx, c.seed, sharding)
    step = compile_step(built.method, tx, seed=c.seed, accumulate=1, mesh=mesh, wrap=build.build_guard(c))
    batches, found = built.streams.batches(0), []
    for _ in range(2):
        state, metrics = step(state, shard_batch(mesh, next(batches)))
        found.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    if case == CLASSIFIER:
        keep(built, state, folder)
    return [*found, sums(state)]


def build_case(case: str, folder: Path) -> Built:
    """All objects of a case, as `build_training` makes them, but for one device whatever the machine has."""
    file, _, name = case.partition(":")
    options = {**_TINY, **CASES[case]}
    if options["model.encoder"] != "unet":
        options |= _DEEPLAB
    if name.startswith("wsss"):
        if not (folder / "config.json").exists():
            two_steps(CLASSIFIER, folder)
        options["method.classifier"] = str(folder)
    c = load_config(f"configs/{file}.py:{name.partition(' ')[0]}", options)
    check_options(c)
    c, mesh = chosen(c), make_mesh(devices=jax.devices()[:1])
    data = sources.build_training_data(c)
    c = build.with_epoch(c, sources.epoch_of(c, data))
    method = build.build_method(c, data.dataset.labels, guide=guide_of(c), mesh=mesh)
    return Built(c, data, sources.build_streams(c, data), method, mesh)


def keep(built: Built, state: TrainState, folder: Path) -> None:
    """Writes a state to a work directory from which it can be loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, built.config, built.data.dataset.labels, built.data.split, val_of(built.data))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save_last(state, 2)
    checkpoints.close()


def sums(state: TrainState) -> Numbers:
    """The sum of all magnitudes in each part of a state."""
    parts = jax.device_get(state._asdict())
    return {
        f"sum/{name}": float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(parts[name])))
        for name in ("params", "batch_stats", "teacher", "opt_state", "memory")
    }


def stored() -> dict[str, list[Numbers]]:
    """What the file holds."""
    content: dict[str, list[dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        case: [{name: float.fromhex(value) for name, value in numbers.items()} for numbers in found]
        for case, found in content.items()
    }


def write(found: dict[str, list[Numbers]]) -> None:
    """Makes the file anew."""
    content = {case: [{k: v.hex() for k, v in numbers.items()} for numbers in each] for case, each in found.items()}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def across_machines(place: int, name: str) -> float:
    """The relative difference that a number of step 1 or 2, or of the state (3), may have on another machine."""
    if name in ("gradient_norm", "sum/opt_state"):
        return _GRADIENTS
    return _SECOND_STEP if place == 2 or name == "sum/batch_stats" else RTOL


def exactly(place: int, name: str) -> float:
    """None, on the machine that made the file."""
    del place, name
    return 0.0


def differences(expected: list[Numbers], found: list[Numbers], allowed: Allowed) -> list[str]:
    """A line for each number that is not what was expected, or is on one side alone."""
    lines = []
    for place, (old, new) in enumerate(zip(expected, found, strict=True), start=1):
        for name in sorted(old.keys() | new.keys()):
            was, now = old.get(name), new.get(name)
            rtol = allowed(place, name)
            if was is None or now is None or not math.isclose(was, now, rel_tol=rtol, abs_tol=ATOL if rtol else 0.0):
                where = f"step {place}" if place <= 2 else "state"
                lines.append(f"{where}: {name} was {was!r}, is {now!r}")
    return lines


def compared(cases: Iterable[str], allowed: Allowed) -> dict[str, list[str]]:
    """The differences of each case, printed as they are found."""
    wanted, found = stored(), {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            found[case] = differences(wanted[case], two_steps(case, Path(folder)), allowed)
            print("\n  ".join([f"{case}: {len(found[case])} differ", *found[case]]), flush=True)
    return found


def main() -> int:
    """The command; 1 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--only", choices=CASES, action="append", help="may be given again; all cases without it")
    values = parser.parse_args()
    if values.write:
        with tempfile.TemporaryDirectory() as folder:
            made = {case: two_steps(case, Path(folder)) for case in values.only or CASES}
        write((stored() if values.only else {}) | made)
        return 0
    return int(any(compared(values.only or CASES, exactly if values.exact else across_machines).values()))


if __name__ == "__main__":
    raise SystemExit(main())
