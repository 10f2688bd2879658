"""What an import says at its end."""

import shlex
from pathlib import Path

from forec_jax.annotations.gather import Request
from forec_jax.annotations.write import PREVIEWS, UNLABELLED, Summary
from forec_jax.contracts import IGNORE

_SEEN = {"area": "the smaller one is seen", "order": "the later one is seen"}


def report(summary: Summary, request: Request, out: Path, dry: bool) -> str:
    """A table of the classes, what was left out or decided, and what to do next."""
    lines = [*_table(summary), "", *_counts(summary, request)]
    if dry:
        return "\n".join([*lines, f"nothing was written; without --dry-run this goes to {out}"])
    return "\n".join([*lines, f"look at {out / PREVIEWS} before you train", "", *_next(summary, out)])


def _table(summary: Summary) -> list[str]:
    total = max(int(summary.pixels.sum()), 1)
    rows = [("class", "pixels", "share", "images")]
    names = [*enumerate(summary.gathered.classes)] + [(IGNORE, "(void)")] * bool(summary.pixels[IGNORE])
    for k, name in names:
        pixels = int(summary.pixels[k])
        rows.append((name, f"{pixels:,}", f"{100 * pixels / total:.2f} %", f"{summary.images[k]:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[c]:>{widths[c]}}" for c in (1, 2, 3)) for row in rows]


def _counts(summary: Summary, request: Request) -> list[str]:
    val = f", {len(summary.val)} of them in val" if summary.val else ""
    lines = [f"{len(summary.labelled)} images with masks{val}; {summary.objects} objects"]
    if summary.unlabelled:
        listed = sum(picture.drawn is not None for picture in summary.unlabelled)
        bare = f"; on {listed} of them nothing is drawn (--empty=background makes them background)" if listed else ""
        lines.append(f"{len(summary.unlabelled)} images without masks, in {UNLABELLED}/{bare}")
    if summary.contested:
        other = "order" if summary.rule.overlap == "area" else "area"
        lines.append(
            f"{summary.contested:,} pixels lie in objects of different classes: {_SEEN[summary.rule.overlap]} "
            f"(--overlap={other} for the other way)"
        )
    for name, count in summary.gathered.unwanted.items():
        if count:
            lines.append(f"{count} objects of {name}, which is not among --classes, become {_ground(summary)}")
    return lines


def _ground(summary: Summary) -> str:
    return "void" if summary.rule.uncovered == IGNORE else summary.gathered.classes[summary.rule.uncovered]


def _next(summary: Summary, out: Path) -> list[str]:
    method = "forec" if summary.unlabelled else "supervised"
    root, workdir = shlex.quote(str(out)), shlex.quote(f"runs/{out.name}")
    command = f"forec-jax train --config=configs/folder.py:small+{method} --config.data.root={root} --workdir={workdir}"
    return ["next:", f"  {command}"]
