"""A work directory: what a run keeps of itself beside its checkpoints, and when it may be gone on with."""

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import forec_jax
from forec_jax.config import chosen, defaults
from forec_jax.data import Labels
from forec_jax.data.splits import Split, list_sha256
from forec_jax.files import read_json, write_json
from forec_jax.keys import flat, new_key
from forec_jax.kinds import listed, mapping, number, text, whole
from forec_jax.methods.tasks import TASKS
from forec_jax.options import to_config
from forec_jax.parallel import barrier
from forec_jax.plugins import use_plugin
from forec_jax.training import holds_any

SPLIT = "split.json"
"""The SHA-256 of the images that a run is trained on, which its config names by the path of a list alone."""


VAL = "val.json"
"""The ids of the validation images of a run, which must not move under it when a data set grows."""


SUMMARY = "summary.json"
"""The scores of a run and what they depend on, written at its end."""


GO_ON = "To train on from it, start another --workdir with --config.model.weights={workdir}"
"""How more steps, another learning rate or more masks go on from a run."""


class WorkdirError(ValueError):
    """A work directory that cannot be used; the message says why and what to do."""


def make_workdir(workdir: Path) -> None:
    """Makes the work directory where there is none. Raises WorkdirError where it cannot be used."""
    try:
        str(workdir.absolute()).encode()  # as the library that writes checkpoints will
    except UnicodeEncodeError as error:
        raise WorkdirError(
            f"--workdir={str(workdir)!a} has characters that this locale cannot spell; set PYTHONUTF8=1, or choose another"
        ) from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir} cannot be written to ({error.strerror}); choose another") from error


def check_same_run(workdir: Path, c: ConfigDict, split: Split) -> None:
    """Raises WorkdirError where config or images are not those of the run already there.

    As long as that run has no checkpoint there is nothing to go on from: it failed at its start, and may be mended.
    """
    stored = workdir / "config.json"
    if stored.exists() and holds_any(workdir / "checkpoints"):
        check_same_config(json.loads(read_config(stored).to_json()), json.loads(c.to_json()), workdir)
        _check_same_images(split, c, workdir)


def begin(workdir: Path, c: ConfigDict, labels: Labels, split: Split, val_ids: Sequence[str]) -> None:
    """Writes what a run is to the work directory."""
    write_json(workdir / SPLIT, _image_sums(split))
    write_json(workdir / VAL, list(val_ids))
    write_json(workdir / "config.json", json.loads(c.to_json()))
    write_json(workdir / "labels.json", labels._asdict())


def _image_sums(split: Split) -> dict[str, str]:
    """The SHA-256 of the images that are trained on, by the part of the split; of pseudo, that of its masks."""
    return {"labelled": split.sha256, "unlabelled": list_sha256(split.unlabelled), "pseudo": split.pseudo_sha256}


@contextmanager
def damage_named(path: Path, remedy: str) -> Iterator[None]:
    """Turns what a damaged JSON file raises, read and taken apart inside, into a WorkdirError that names file and remedy."""
    try:
        yield
    except WorkdirError:
        raise
    except RecursionError as error:
        raise WorkdirError(f"{path} is damaged (too deep); {remedy}") from error
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)[:300]
        raise WorkdirError(f"{path} is damaged ({said}); {remedy}") from error


def read_config(path: Path) -> ConfigDict:
    """The config of a run. Options that came with a later version have their defaults, which keep to what was done.

    Options that an earlier version wrote under another name are found under today's. Raises WorkdirError where the file
    cannot be read, or has options that this version does not know.
    """
    with damage_named(path, "restore it, or start anew in another --workdir"):
        content = mapping(read_json(path))
        plugin = text(content.get("plugin", ""))
    use_plugin(plugin)
    c = defaults()
    with damage_named(path, "restore it, or start anew in another --workdir"):
        c.auxiliary.update({task: to_config(TASKS[task].options) for task in content["auxiliary"] if task in TASKS})
        usual = flat(c.to_dict())
        stored = renamed(flat(content), set(usual), text(content["model"]["encoder"]))
        if unknown := sorted(stored.keys() - usual.keys()):
            raise WorkdirError(
                f"{path} has options that forec_jax {forec_jax.__version__} does not know ({', '.join(unknown)}): it was "
                "written by another version; go on with that one, or start anew in another --workdir"
            )
        if empty := [key for key, value in usual.items() if value is not None and stored.get(key, value) is None]:
            raise ValueError(f"{empty[0]} has no value")
        c.update_from_flattened_dict(stored)
        return chosen(c)


def renamed(stored: Mapping[str, Any], known: set[str], encoder: str) -> dict[str, Any]:
    """Stored options by today's keys, without those that their encoder never had."""
    new = {key: new_key(key, encoder) for key in stored}
    return {name: stored[key] for key, name in new.items() if key == name or name in known}


REPORTING_KEYS = (
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "data.workers",
    "data.root",
    "data.prepared",
    "data.on_corrupt",
    "data.on_change",
    "eval.batch",
    "eval.bucket",
    "eval.pictures",
    "mesh.fsdp",
    "on_nan",
)
"""Keys that may change between the parts of a resumed run: they change nothing that is trained, or, like on_nan and
data.on_corrupt, only what would end the run otherwise."""


def check_same_config(stored: dict[str, Any], given: dict[str, Any], workdir: Path) -> None:
    """Raises WorkdirError where a run is resumed with options that would train something else."""
    old, new = flat(stored), flat(given)
    differing = sorted(
        key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not key.startswith(REPORTING_KEYS)
    )
    if differing:
        changes = ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in differing[:5])
        raise WorkdirError(
            f"--workdir={workdir} holds a run with another config ({changes}); choose another --workdir. "
            + GO_ON.format(workdir=workdir)
        )


def _check_same_images(split: Split, c: ConfigDict, workdir: Path) -> None:
    """Raises WorkdirError where a run is resumed on other images; one of an earlier version does not say which it had."""
    stored = workdir / SPLIT
    if not stored.exists():
        return
    with damage_named(stored, "remove it if the lists of images are as they were"):
        before = read_json(stored)
        changed = [
            f"data.{part}={c.data[part]!r}" for part, sums in _image_sums(split).items() if before.get(part, "") != sums
        ]
    if changed:
        raise WorkdirError(
            f"--workdir={workdir} holds a run on other images than those of {' and '.join(changed)} now; put the list "
            "back as it was, or choose another --workdir"
        )


def meet(workdir: Path) -> None:
    """Waits for process 0 to have made the work directory. Raises WorkdirError where this process does not see it."""
    if jax.process_count() == 1:
        return
    barrier("workdir")
    if not (workdir / "config.json").exists():
        raise WorkdirError(
            f"--workdir={workdir} is not there on {socket.gethostname()}: it must be on a disk that all machines share"
        )


def read_labels(path: Path) -> Labels:
    """The classes, colours and background that a run was trained with. Raises WorkdirError where the file is damaged."""
    with damage_named(path, "remove it, and rerun the training's command, which writes it anew"):
        content = read_json(path)
        classes = tuple(text(name) for name in listed(content["classes"]))
        palette = tuple(_colour(colour) for colour in listed(content["palette"]))
        background = tuple(whole(k) for k in listed(content["background_classes"]))
        if len(palette) != len(classes) or not set(background) <= set(range(len(classes))):
            raise ValueError(f"{len(classes)} classes, {len(palette)} colours, background {background}")
        return Labels(classes, palette, background)


def _colour(value: Any) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255."""
    red, green, blue = (whole(part) for part in listed(value))
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{value} is no colour")
    return red, green, blue


def stored_val(workdir: Path) -> tuple[str, ...] | None:
    """The ids of a run's validation images; None where there is no run, or one of an earlier version."""
    if not (workdir / VAL).exists():
        return None
    with damage_named(workdir / VAL, "remove it if the masks are as they were when the run began"):
        return tuple(text(name) for name in listed(read_json(workdir / VAL)))


def stored_summary(workdir: Path) -> Mapping[str, Any]:
    """What a run said at its end; empty where it has not ended. Raises WorkdirError where the file is damaged."""
    file = workdir / SUMMARY
    if not file.exists():
        return {}
    with damage_named(file, "remove it, and train with the same command: the finished run writes it again"):
        content = mapping(read_json(file))
        if ("last" in content) != ("best" in content):
            raise ValueError('"last" and "best" belong together')
        for scored in (content[which] for which in ("last", "best") if which in content):
            whole(scored["step"])
            number(scored["miou"])
        split = mapping(content.get("split", {}))
        for what in (
            split.get("name", ""),
            split.get("published") or "",
            split.get("sha256", ""),
            content.get("devices", ""),
        ):
            text(what)
        mapping(content.get("versions", {}))
        return content
