"""What a run was trained and scored on, image by image, so that no result changes silently when a data set does."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forec_jax.data import Labels
from forec_jax.experiment.sources import TrainingData
from forec_jax.experiment.workdir import WorkdirError, damage_named
from forec_jax.files import read_json, write_json
from forec_jax.kinds import mapping, text, whole

CONTENTS = "data.json"
"""The sums of a run's images and of what their masks say, as they were when it began."""

Sums = Mapping[str, str]
"""Of an image's file and of what its mask says, by id; "" where that is not known."""


class Contents(NamedTuple):
    """The images of a run."""

    split: str  # the one that it is scored on
    scored: Sums
    trained: Sums
    labelled: int  # how many of those that are trained on
    changed: bool = False  # whether it went on with other files: its log then holds scores of either


def contents_of(data: TrainingData, split: str) -> Contents:
    """The images as they are now."""
    parts, sums = data.split, data.dataset.sums
    trained = (*parts.labelled, *parts.unlabelled, *parts.tagged, *parts.pseudo)
    return Contents(split, chosen_sums(sums, data.validation.ids), chosen_sums(sums, trained), len(parts.labelled))


def chosen_sums(sums: Sums, ids: Iterable[str]) -> dict[str, str]:
    """The sums of some images."""
    return {name: sums.get(name, "") for name in ids}


def one_sum(sums: Sums) -> str:
    """The SHA-256 of images and sums: equal where the same images are scored by the same masks."""
    return hashlib.sha256("\n".join(f"{name}\t{sums[name]}" for name in sorted(sums)).encode()).hexdigest()


def differing(before: Sums, now: Sums) -> list[str]:
    """The ids, sorted, that only one of the two has, or whose files changed; what is not known counts as unchanged."""
    changed = {name for name in before.keys() & now.keys() if before[name] and now[name] and before[name] != now[name]}
    return sorted(changed | (before.keys() ^ now.keys()))


def stored_contents(workdir: Path) -> Contents | None:
    """The images that a run began with; None for a run of an earlier version. Raises WorkdirError for a damaged file."""
    if not (workdir / CONTENTS).exists():
        return None
    with damage_named(workdir / CONTENTS, "remove it if images and masks are as they were when the run began"):
        stored = read_json(workdir / CONTENTS)
        scored, trained = ({k: text(v) for k, v in mapping(stored[key]).items()} for key in ("scored", "trained"))
        changed = stored.get("changed", False) is not False
        return Contents(text(stored["split"]), scored, trained, whole(stored["labelled"]), changed)


def keep_contents(workdir: Path, contents: Contents) -> None:
    """Writes the images that a run began with."""
    write_json(workdir / CONTENTS, contents._asdict())


def check_same_contents(workdir: Path, now: Contents, on_change: str) -> str | None:
    """What changed under a run that goes on, in words; None where nothing did.

    Raises WorkdirError with these words unless `on_change` is "warn".
    """
    if (before := stored_contents(workdir)) is None:
        return None
    trained, scored = differing(before.trained, now.trained), differing(before.scored, now.scored)
    if not trained and not scored:
        return None
    words = (
        f"--workdir={workdir}: since the run began, images or masks changed: {len(trained)} of the {len(now.trained)} to "
        f"train on and {len(scored)} of the {len(now.scored)} of {now.split} ({some([*trained, *scored])})"
    )
    if on_change != "warn":
        raise WorkdirError(
            f"{words}.\nRestore them, choose another --workdir, or go on all the same with --config.data.on_change=warn"
        )
    keep_contents(workdir, before._replace(changed=True))
    return words


def check_same_classes(stored: Labels, now: Labels, what: str) -> None:
    """Raises WorkdirError where a data set's classes are others, or in another order, than those that a run learned."""
    if stored.classes != now.classes:
        raise WorkdirError(
            f"{what} learned the classes {_in_order(stored.classes)}; the data set now has {_in_order(now.classes)}.\n"
            "Put the data set's names back in that order (classes.toml), or train anew in another --workdir"
        )


def check_same_background(stored: Labels, now: Labels, what: str) -> None:
    """Raises WorkdirError where a run would go on with other classes as background than it began with."""
    was, now_is = (_in_order([labels.classes[k] for k in labels.background_classes]) for labels in (stored, now))
    if was != now_is:
        raise WorkdirError(
            f"{what} began with {was} as background; the data set now has {now_is}.\n"
            "Put it back (background in classes.toml), or train anew in another --workdir"
        )


def _in_order(names: Sequence[str]) -> str:
    """Names in words."""
    return "[" + ", ".join(names) + "]"


def some(ids: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
