"""What a report shows of stored runs: scores, curves, examples, options."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import forec_jax
from forec_jax import report
from forec_jax.data import Example as Image
from forec_jax.data import Labels, evaluation_examples, select
from forec_jax.evaluation import Evaluation
from forec_jax.experiment.figures import shared_labels, shown_model
from forec_jax.experiment.load import Run, Stored, by_name, load_run, read_stored
from forec_jax.experiment.results import Result, networks_of
from forec_jax.experiment.score import evaluated
from forec_jax.experiment.summary import evaluations
from forec_jax.experiment.table import Row, incomparable, short
from forec_jax.experiment.workdir import damage_named, stored_summary
from forec_jax.files import write_whole
from forec_jax.keys import flat
from forec_jax.training.events import METRICS_FILE, read_events
from forec_jax.training.reporting import percent
from forec_jax.training.scores import best_of
from forec_jax.visualize import (
    Examiner,
    Finding,
    class_correlations,
    fit,
    latent_image,
    overlay,
    sheets_class,
    top_channels,
    truth_of,
)

SIDES = 240, 512
"""The longer side of an example's pictures in pixels: smaller images are enlarged, larger ones shrunk."""

LATENTS = 3  # latent images of an example and run
FIRST_CHARTS = ("loss", "kept", "learning_rate")  # beside mIoU; the others are behind a fold

Event = Mapping[str, Any]


class _Seen(NamedTuple):
    """What is known of a run."""

    stored: Stored
    events: Sequence[Event]
    summary: Mapping[str, Any]  # empty where the run is not finished
    evaluation: Evaluation | None  # None where it was not scored anew
    result: Result | None


def write_report(
    workdirs: Sequence[Path],
    out: Path,
    *,
    network: str,
    checkpoint: str,
    examples: int,
    score: bool,
    root: str | None = None,
) -> None:
    """Writes a page that shows runs to `out`.

    `examples`: how many images are shown with what the runs make of them. `score`: the runs are scored on their
    evaluation split, which the confusion matrix needs; otherwise the page has the scores that the trainings logged.
    `root` is where the runs' data set lies now, if it moved. Raises WorkdirError where a folder holds no run or the runs'
    classes differ.
    """
    stored = {name: read_stored(workdir, root) for name, workdir in by_name(workdirs).items()}
    runs = {name: load_run(one.workdir, checkpoint, root) for name, one in stored.items()} if examples or score else {}
    labels = shared_labels(runs) if runs else next(iter(stored.values())).labels
    seen = {name: _seen(one, runs.get(name) if score else None, network, checkpoint) for name, one in stored.items()}
    first, more = _charts(seen)
    content = report.Report(
        title=" and ".join(seen) if len(seen) < 4 else f"{len(seen)} runs",
        made=f"{datetime.date.today().isoformat()}, forec_jax {forec_jax.__version__}",
        colours={name: (int(r), int(g), int(b)) for name, (r, g, b) in zip(*labels[:2], strict=False)},
        runs=[_run_view(name, one) for name, one in seen.items()],
        charts=first,
        more_charts=more,
        examples=_examples(runs, labels, network, examples) if examples else [],
        remarks=_remarks(seen, unfinished=checkpoint == "last"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, report.page(content).encode())


def _seen(stored: Stored, run: Run | None, network: str, checkpoint: str) -> _Seen:
    """What a run's folder tells, and its score where it is found anew."""
    summary = stored_summary(stored.workdir)
    evaluation, result = None, None
    if run is not None:
        evaluation, result = evaluated(run, run.dataset(), stored.config.eval.split, network, checkpoint)
    return _Seen(stored, read_events(stored.workdir / METRICS_FILE), summary, evaluation, result)


def _run_view(name: str, seen: _Seen) -> report.RunView:
    """A run as the page shows it."""
    config = {key: short(value) for key, value in sorted(flat(seen.stored.config.to_dict()).items())}
    confusion = None if seen.evaluation is None else seen.evaluation.confusion
    return report.RunView(name, _facts(seen), _iou(seen), confusion, config)


def _iou(seen: _Seen) -> dict[str, float | None]:
    """The IoU of each class: found anew, or logged at the last evaluation."""
    classes, scored = seen.stored.labels.classes, evaluations(seen.events)
    if seen.evaluation is not None:
        found: Iterable[float | None] = seen.evaluation.iou.tolist()
    elif scored:
        with damage_named(seen.stored.workdir / METRICS_FILE, f"remove its line of step {scored[-1]['step']}"):
            found = scored[-1][f"{networks_of(scored[-1])[0]}_iou"]
    else:
        found = []
    return {name: None if iou is None or np.isnan(iou) else iou for name, iou in zip(classes, found, strict=False)}


def _facts(seen: _Seen) -> dict[str, str]:
    """The rows of the page's first table."""
    c, scored, split = seen.stored.config, evaluations(seen.events), seen.summary.get("split", {})
    best = best_of(scored)
    trained = [event for event in seen.events if event["event"] == "train"]
    step = seen.events[-1]["step"] if seen.events else 0
    rates = [event["images_per_second"] for event in trained if event.get("images_per_second")]
    return {
        "Method": " + ".join([c.method.name, *sorted(c.auxiliary.keys())]),
        **_scored_now(seen.result),
        f"mIoU on {c.eval.split}, last": _score(scored[-1], networks_of(scored[-1])[0]) if scored else "-",
        f"mIoU on {c.eval.split}, best": f"{percent(best.score)} at step {best.step}" if best else "-",
        "Student, last": _score(scored[-1], "student") if scored else "-",
        "Labelled images": str(split.get("labelled", "-")),
        "Unlabelled images": str(split.get("unlabelled", "-")),
        "Label list": split.get("published") or split.get("name", "-"),
        "SHA-256 of the lists": split.get("sha256", "-")[:16],
        "Seed": str(c.seed),
        "Steps": str(step) if step == c.steps else f"{step} of {c.steps}: not finished",
        "Images a second": f"{median(rates):.1f}" if rates else "-",
        "Devices": seen.summary.get("devices", "-"),
        "Versions": ", ".join(f"{k} {v}" for k, v in seen.summary.get("versions", {}).items()) or "-",
        "Folder": str(seen.stored.workdir),
    }


def _scored_now(result: Result | None) -> dict[str, str]:
    """The score of the checkpoint that the page shows."""
    if result is None:
        return {}
    q = result.question
    return {f"mIoU on {q.split}, of this page": f"{percent(result.miou)} ({q.network}, step {q.step})"}


def _score(event: Event, network: str) -> str:
    """A logged score with its step."""
    return f"{percent(event.get(f'{network}_miou'))} ({network}, step {event['step']})"


def _charts(seen: Mapping[str, _Seen]) -> tuple[list[report.Chart], list[report.Chart]]:
    """mIoU, loss, share of kept pseudo-labels and learning rate; and everything else that was logged."""
    runs = [(name, one.events) for name, one in seen.items()]
    scores = {f"{network}_miou" for network in ("teacher", "student")}
    logged = {key for _, events in runs for event in events for key, value in event.items() if _is_number(value)}
    others = sorted(logged - scores - {"step", *FIRST_CHARTS})
    first = [_score_chart(runs), *(_chart(key, runs) for key in FIRST_CHARTS)]
    return [c for c in first if c is not None], [c for key in others if (c := _chart(key, runs)) is not None]


def _score_chart(runs: Sequence[tuple[str, Sequence[Event]]]) -> report.Chart | None:
    """mIoU in percent of the network that counts."""
    lines = {
        number: (name, [(e["step"], 100 * e[key]) for e in events if (key := _counting(e)) and e[key] is not None])
        for number, (name, events) in enumerate(runs)
    }
    return report.line_chart("mIoU, %", lines)


def _counting(event: Event) -> str:
    """The key of an evaluation's score: the teacher's where there is one."""
    return f"{networks_of(event)[0]}_miou" if event["event"] == "evaluation" else ""


def _chart(key: str, runs: Sequence[tuple[str, Sequence[Event]]]) -> report.Chart | None:
    """A logged number of all runs."""
    lines = {
        number: (name, [(e["step"], e[key]) for e in events if _is_number(e.get(key))])
        for number, (name, events) in enumerate(runs)
    }
    return report.line_chart(key, lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _remarks(seen: Mapping[str, _Seen], *, unfinished: bool) -> list[str]:
    """What makes the scores of the page incomparable, a sentence each."""
    scored = {name: one for name, one in seen.items() if one.result is not None}
    if not scored:
        return []
    split = next(iter(scored.values())).stored.config.eval.split
    rows = [Row(name, one.stored, {split: one.result}) for name, one in scored.items() if one.result is not None]
    return incomparable(rows, [split], unfinished=unfinished)


def _examples(runs: Mapping[str, Run], labels: Labels, network: str, count: int) -> list[report.Example]:
    """Images from all over the first run's evaluation split, with what every run makes of them."""
    run = next(iter(runs.values()))
    source = run.dataset().scored(run.config.eval.split)
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    examiners = {name: Examiner(shown_model(one, name, network)) for name, one in runs.items()}
    chosen = evaluation_examples(select(source, [source.ids[place] for place in places]))
    return [_example(image, {name: examine(image) for name, examine in examiners.items()}, labels) for image in chosen]


def _example(image: Image, found: Mapping[str, Finding], labels: Labels) -> report.Example:
    """An image, its truth and its predictions in one size; what is painted, with latent images."""
    side = int(np.clip(max(image.image.shape), *SIDES))
    maps = {"truth": truth_of(image), **{name: finding.prediction.label for name, finding in found.items()}}
    coloured = {name: overlay(image.image, index, labels.palette, alpha=0.65) for name, index in maps.items()}
    layers = [report.Picture(name, fit(pixels, side)) for name, pixels in {"image": image.image, **coloured}.items()]
    latents = [picture for name, finding in found.items() for picture in _painted(name, finding, image, labels)]
    return report.Example(image.id, layers, latents)


def _painted(name: str, found: Finding, image: Image, labels: Labels) -> list[report.Picture]:
    """What a reconstruction decoder paints, and the latent images that follow the image's main class most."""
    if found.painted is None:
        return []
    pictures = [report.Picture(f"{name} paints", fit(found.painted.image, SIDES[0]))]
    label, latent = truth_of(image), found.painted.latent
    shown = sheets_class(image, [found.prediction.label], labels)
    correlation = class_correlations(latent, label).get(shown)
    if correlation is None:
        return pictures
    height, width = fit(image.image, SIDES[0]).shape[:2]
    return pictures + [
        report.Picture(
            f"{name}, channel {channel}: {labels.classes[shown]} {correlation[channel]:+.2f}",
            latent_image(latent[..., channel], height, width),
        )
        for channel in top_channels(correlation, LATENTS)
    ]
