"""The options in words: what `forec-jax options` prints, and the tables of the docs."""

from ml_collections import ConfigDict

from forec_jax.config import blocks_of, every_block, options_in
from forec_jax.keys import flat
from forec_jax.options import Option, OptionError, dotted, options_of


def options_table(prefix: str, c: ConfigDict | None) -> str:
    """The options under a prefix ("" for all), one a line: of a config those that apply, with its values.

    Raises OptionError where there is none.
    """
    known = dict(options_in(every_block() if c is None else blocks_of(c)))
    shown = {
        key: found for key, found in known.items() if key == prefix or key.startswith(f"{prefix}." if prefix else "")
    }
    if not shown:
        raise OptionError(f"no option begins with {prefix!r}; without it, forec-jax options lists all")
    values = {} if c is None else flat(c.to_dict())
    said = {key: repr(values.get(key, found.default)) for key, found in shown.items()}
    widths = max(map(len, said)), max(map(len, said.values()))
    return "\n".join(f"{key:<{widths[0]}}  {said[key]:<{widths[1]}}  {in_words(found)}" for key, found in shown.items())


def in_words(found: Option) -> str:
    """An option's meaning and what it may be."""
    return found.meaning + (f" ({found.rule.words.removeprefix(':').strip()})" if found.rule else "")


def options_page() -> str:
    """docs/options.md: every option, a table a block."""
    tables = []
    for prefix, kinds in every_block().items():
        if rows := [(dotted(prefix, found.name), found) for kind in kinds for found in options_of(kind)]:
            lines = (f"| `{key}` | `{found.default!r}` | {_cell(in_words(found))} |" for key, found in rows)
            head = f"## {prefix or 'The run'}", "", "| option | default | meaning |", "|---|---|---|"
            tables.append("\n".join((*head, *lines)))
    return "\n\n".join((_INTRODUCTION, *tables)) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_INTRODUCTION = """# Options

Made by `forec-jax options --markdown > docs/options.md`; do not edit it by hand.

Each is set by `--config.KEY=VALUE`. The options of a method, data set, encoder or decoder exist where it is used, and
nowhere else: `forec-jax options --config=FILE:VARIANT` lists those that apply to a config, with its values."""
