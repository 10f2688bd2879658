"""Methods, auxiliary tasks, data sets, encoders and decoders from a file of one's own, through the library's own entries."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from forec_jax.data.datasets import DATASETS
from forec_jax.data.source import DataEntry
from forec_jax.methods import METHODS
from forec_jax.methods.entry import MethodEntry, TaskEntry
from forec_jax.methods.tasks import TASKS
from forec_jax.models.decoders import DECODERS
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.network import DecoderEntry, EncoderEntry
from forec_jax.options import OptionError

_LISTS: dict[type, dict[str, Any]] = {
    MethodEntry: METHODS,
    TaskEntry: TASKS,
    DataEntry: DATASETS,
    DecoderEntry: DECODERS,
}


def use_plugin(path: str) -> None:
    """Lists what the file's ENTRIES name beside what the library has; does nothing for an empty path or a second time.

    Raises OptionError where there is no such file, it has no ENTRIES, or a name is taken.
    """
    if not path:
        return
    file = Path(path).expanduser().resolve()
    name = f"forec_jax_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return
    if not file.is_file():
        raise OptionError(
            f"plugin={path}: there is no such file ({file}); put it there, or say where it is now: "
            "--config.plugin, or plugin in the config.json of a run"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a file of Python has a loader"
    assert spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        found = [_named(path, entry) for entry in _entries(path, module)]
        for known, named in found:  # all of them, or none where one cannot be used
            known.update(named)
    except BaseException:
        del sys.modules[name]  # mended, it may be tried again
        raise


def _entries(path: str, module: Any) -> tuple[Any, ...]:
    entries = getattr(module, "ENTRIES", None)
    if not isinstance(entries, tuple | list) or not entries:
        raise OptionError(f"plugin={path}: the file must end in ENTRIES = (...), what it brings (docs/extend.md)")
    return tuple(entries)


def _named(path: str, entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The list that an entry belongs to, and what it adds there."""
    if isinstance(entry, EncoderEntry):
        named: dict[str, Any] = dict.fromkeys(entry.variants, entry)
        known: dict[str, Any] = ENCODERS
    elif type(entry) in _LISTS:
        named, known = {entry.name: entry}, _LISTS[type(entry)]
    else:
        raise OptionError(f"plugin={path}: ENTRIES holds a {type(entry).__name__}, which is no entry (docs/extend.md)")
    if taken := sorted(named.keys() & known.keys()):
        raise OptionError(f"plugin={path}: the name {taken[0]!r} is taken; choose another")
    return known, named
