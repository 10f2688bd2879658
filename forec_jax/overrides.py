"""Options that the command line gives by dotted key: found, renamed, and refused with what may be meant."""

import difflib
from collections.abc import Iterable

from ml_collections import ConfigDict

from forec_jax.config import blocks_of, options_in
from forec_jax.keys import flat
from forec_jax.methods.tasks import TASKS


def check_keys(c: ConfigDict, keys: Iterable[str], flag: str = "config") -> None:
    """Raises ValueError for a dotted key that the config does not have, or that belongs to what it does not use.

    `flag` is what the command line calls the config.
    """
    known, applies = flat(c.to_dict()), {key for key, _ in options_in(blocks_of(c))}
    for key in keys:
        if key in applies:
            continue
        if key in known:
            raise ValueError(f"--{flag}.{key}: {_unused(c, key)}")
        raise ValueError(f"--{flag}.{key}: {_unknown(c, key, known, flag)}")


def _unused(c: ConfigDict, key: str) -> str:
    chooser = {"model": "encoder", "method": "name", "data": "name"}[key.split(".")[0]]
    choice = f"{key.split('.')[0]}.{chooser}"
    return f"this config does not use it: its {choice} is {c[key.split('.')[0]][chooser]}"


def _unknown(c: ConfigDict, key: str, known: Iterable[str], flag: str) -> str:
    task = key.split(".")[1] if key.startswith("auxiliary.") else ""
    if task in TASKS and task not in c.auxiliary:
        return f"this config has no task {task}; add it to the variant: +{' or '.join(TASKS[task].variants)}"
    near = difflib.get_close_matches(key, known, n=1)
    return f"there is no such option; {f'did you mean --{flag}.{near[0]}?' if near else 'see: forec-jax options'}"
