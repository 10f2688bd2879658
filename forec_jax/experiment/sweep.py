"""Sweeps: methods x options x seeds x label lists, a training each, all in one work directory.

A sweep file is TOML (docs/sweeps.md). It is read here and becomes a list of trainings; `jobs.py` runs them.
"""

import difflib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from forec_jax.config import find_config
from forec_jax.keys import flat
from forec_jax.options import OptionError

_KEYS = ("config", "methods", "baseline", "splits", "options", "vary", "repeat")
_PLACE = re.compile(r"\{([a-z_0-9.]+)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,-]+")

Options = Mapping[str, str]
"""Values as the command line has them, by dotted key."""


class Choice(NamedTuple):
    """One of several values: what it is called, and what it sets."""

    name: str
    options: Options
    variant: str = ""  # of a method
    baseline: str = ""  # of a method: the one that it is compared with, where that is not the sweep's


class Sweep(NamedTuple):
    """What is trained. Each method with each combination of `vary` is a row; each combination of `repeat` a run of it."""

    source: str  # for messages: the file, or "the flags"
    config: str  # FILE or FILE:VARIANT, to which the methods are added
    methods: Sequence[Choice]
    options: Options
    vary: Sequence[Sequence[Choice]]
    repeat: Sequence[Sequence[Choice]]
    baseline: str = ""  # a method's name
    splits: Sequence[str] = ()  # that are scored; empty: the one that is scored in training


class Planned(NamedTuple):
    """A training of a sweep."""

    row: str
    baseline: str  # the row that it is compared with, or ""
    draw: str  # which repetition
    folder: str  # in the sweep's work directory
    config: str
    options: Options

    @property
    def name(self) -> str:
        """The run in a few words."""
        return f"{self.row}, {self.draw}"

    def arguments(self, workdir: Path) -> list[str]:
        """Those of the command that trains it."""
        options = [f"--config.{key}={value}" for key, value in self.options.items()]
        return ["train", f"--config={self.config}", *options, f"--workdir={workdir / self.folder}"]


def read_sweep(path: str) -> Sweep:
    """A sweep file. Raises OptionError, which names file and key, for what makes no sense."""
    file = find_config(path)
    if file is None:
        raise OptionError(f"--sweep={path}: there is no such file; for example --sweep=configs/sweeps/tiny.toml")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise OptionError(f"{file}: cannot be read as TOML ({error})") from error
    _check_keys(content, _KEYS, f"{file}")
    for key, kind in (("config", str), ("methods", list)):
        if not content.get(key):
            raise OptionError(f"{file}: {key} is missing; such as {_EXAMPLES[key]}")
        _check_kind(content[key], kind, f"{file}: {key}", _EXAMPLES[key])
    sweep = Sweep(
        source=str(file),
        config=content["config"],
        methods=[_method(item, f"{file}: methods[{i}]") for i, item in enumerate(content["methods"])],
        options=_options(_table(content, "options", file), f"{file}: options"),
        vary=_axes(_table(content, "vary", file), f"{file}: vary"),
        repeat=_axes(_table(content, "repeat", file), f"{file}: repeat"),
        baseline=_check_kind(content.get("baseline", ""), str, f"{file}: baseline", '"supervised"'),
        splits=[
            _check_kind(name, str, f"{file}: splits", '["val"]')
            for name in _check_kind(content.get("splits", []), list, f"{file}: splits", '["val"]')
        ],
    )
    return sweep


_EXAMPLES = {"config": 'config = "configs/shapes.py"', "methods": 'methods = ["supervised", "forec"]'}


def method_choice(variant: str) -> Choice:
    """A method that is called as its variant is."""
    return Choice(variant, {}, variant)


def axis(key: str, values: Iterable[Any]) -> list[Choice]:
    """The values of one option."""
    return [Choice(f"{key}={in_text(value)}", {key: in_text(value)}) for value in values]


def in_text(value: Any) -> str:
    """A value of a TOML file as the command line has it."""
    return value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)


def trainings(sweep: Sweep, given: Options) -> list[Planned]:
    """The trainings of a sweep, all rows of the first repetition before those of the second.

    `given` are options that stand over those of the sweep: where data lies, say. Raises OptionError for a baseline that is
    no method, an unknown {name} in a value, and for two trainings with the same folder.
    """
    names = [method.name for method in sweep.methods]
    for baseline in (sweep.baseline, *(method.baseline for method in sweep.methods)):
        if baseline and baseline not in names:
            raise OptionError(f"{sweep.source}: baseline={baseline!r} is no method of it{_near(baseline, names)}")
    file, _, parts = sweep.config.partition(":")
    planned = []
    for draws in itertools.product(*(sweep.repeat or [axis("seed", [0])])):
        for varied in itertools.product(*sweep.vary):
            for method in sweep.methods:
                baseline = method.baseline or sweep.baseline
                suffix = "".join(f", {choice.name}" for choice in varied)
                row, draw = method.name + suffix, ", ".join(choice.name for choice in draws)
                options = {**sweep.options}
                for choice in (*varied, method, *draws):
                    options.update(choice.options)
                options.update(given)
                variant = f"{parts}+{method.variant}" if parts else method.variant
                planned.append(
                    Planned(
                        row,
                        baseline + suffix if baseline and baseline != method.name else "",
                        draw,
                        str(PurePosixPath(_folder(row), _folder(draw))),
                        f"{file}:{variant}",
                        _filled(options, f"{sweep.source}: {row}, {draw}"),
                    )
                )
    _check_folders(planned, sweep.source)
    return planned


def _check_folders(planned: Sequence[Planned], source: str) -> None:
    """Raises OptionError where two trainings would have the same folder, on any file system."""
    seen: dict[str, Planned] = {}
    for run in planned:
        other = seen.setdefault(run.folder.lower(), run)
        if other is not run:
            same = "are twice in it" if other.name == run.name else f"({other.name}) have the same folder, {run.folder}"
            raise OptionError(f"{source}: {run.name} {same}; give one of them another name")


def _folder(name: str) -> str:
    """A name as a folder's."""
    return _UNSAFE.sub("-", name.replace(", ", ",")).strip("-.") or "run"


def _filled(options: Options, where: str) -> dict[str, str]:
    """The options with every {key} in a value replaced by that option's own value."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in options:
            raise OptionError(f"{where}: {match[0]}: no option {match[1]} is given there{_near(match[1], options)}")
        return options[match[1]]

    return {key: _PLACE.sub(value_of, value) for key, value in options.items()}


def _method(item: Any, where: str) -> Choice:
    """An entry of `methods`: a variant, or a table with its name, variant and options."""
    if isinstance(item, str):
        return method_choice(item)
    _check_kind(
        item, dict, where, '"forec" or { name = "sure", variant = "forec", options = { method.threshold = 0.9 } }'
    )
    _check_keys(item, ("name", "variant", "options", "baseline"), where)
    variant = _check_kind(item.get("variant", ""), str, f"{where}: variant", '"forec"')
    if not variant:
        raise OptionError(f"{where}: variant is missing")
    name = _check_kind(item.get("name", variant), str, f"{where}: name", '"forec"')
    baseline = _check_kind(item.get("baseline", ""), str, f"{where}: baseline", '"supervised"')
    return Choice(name, _options(_table(item, "options", where), f"{where}: options"), variant, baseline)


def _axes(table: Mapping[str, Any], where: str) -> list[list[Choice]]:
    """What `vary` and `repeat` hold: for each option its values, or for a name of one's own tables of options."""
    axes = []
    for key, values in flat(table).items():
        here = f"{where}.{key}"
        if not _check_kind(values, list, here, "a list of values such as [0, 1, 2]"):
            raise OptionError(f"{here} is empty; leave it out, or give it values")
        named = [isinstance(value, dict) for value in values]
        if any(named) and not all(named):
            raise OptionError(f"{here} mixes values and tables; name all of them")
        axes.append(
            [_named(key, value, f"{here}[{i}]") for i, value in enumerate(values)]
            if all(named)
            else axis(key, [_value(value, here) for value in values])
        )
    return axes


def _named(key: str, table: Mapping[str, Any], where: str) -> Choice:
    """{ name = "39", options = {...} }."""
    _check_keys(table, ("name", "options"), where)
    if "name" not in table or not _table(table, "options", where):
        raise OptionError(f'{where} needs a name and options, such as {{ name = "39", options = {{ seed = 1 }} }}')
    return Choice(f"{key}={in_text(table['name'])}", _options(table["options"], f"{where}: options"))


def _options(table: Mapping[str, Any], where: str) -> dict[str, str]:
    return {key: _value(value, f"{where}: {key}") for key, value in flat(table).items()}


def _value(value: Any, where: str) -> str:
    """A value of an option. Raises OptionError for a date and the like."""
    if not isinstance(value, str | int | float | list):
        raise OptionError(f"{where}: {value!r} is no value of an option")
    return in_text(value)


def _table(content: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    table: dict[str, Any] = _check_kind(
        content.get(key, {}), dict, f"{where}: {key}", "a table of options by dotted key"
    )
    return table


def _check_kind(value: Any, kind: type, where: str, example: str) -> Any:
    if not isinstance(value, kind):
        raise OptionError(f"{where} is {value!r}; it must be like {example}")
    return value


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise OptionError(f"{where}: there is no {key!r}{_near(key, known) or '; it has: ' + ', '.join(known)}")


def _near(name: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
