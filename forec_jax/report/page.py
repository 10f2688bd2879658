"""The page: what it shows, and how that becomes HTML."""

import base64
import importlib.resources
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from forec_jax.evaluation.metrics import row_shares
from forec_jax.options import OptionError
from forec_jax.report.charts import HEIGHT, WIDTH, Chart
from forec_jax.training.reporting import percent

MATRIX_CLASSES = 40
"""Classes up to which a confusion matrix is drawn: a larger one cannot be read."""


class Picture(NamedTuple):
    """A picture with its name."""

    name: str
    pixels: np.ndarray  # u8[H,W,3]


class RunView(NamedTuple):
    """A run as the page shows it."""

    name: str
    facts: Mapping[str, str]  # the rows of the first table
    iou: Mapping[str, float | None]  # by class
    confusion: np.ndarray | None  # i64[K,K], truth by prediction
    config: Mapping[str, str]  # every option


class Example(NamedTuple):
    """An image, its truth and what the runs make of it."""

    name: str
    layers: Sequence[Picture]  # of one size, one above the other under a slider
    latents: Sequence[Picture]  # what reconstruction decoders paint, and the latent images that follow the class


class Report(NamedTuple):
    """All that a page shows."""

    title: str
    made: str  # when, and by which version
    colours: Mapping[str, tuple[int, int, int]]  # of the classes
    runs: Sequence[RunView]
    charts: Sequence[Chart]  # the first ones
    more_charts: Sequence[Chart]  # behind a fold
    examples: Sequence[Example]
    remarks: Sequence[str]  # what to know before scores are compared


def page(report: Report) -> str:
    """The HTML of a report: one file without links to anything outside it, every text escaped.

    Raises OptionError where Jinja2 is not installed.
    """
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise OptionError("the report needs Jinja2: pip install 'forec-jax[report]'") from error
    files = importlib.resources.files("forec_jax.report")
    loaded = {name: (files / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    environment = Environment(
        loader=DictLoader(loaded), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "png": as_png, "jpeg": as_jpeg}
    drawn = [run for run in report.runs if run.confusion is not None and len(run.confusion) <= MATRIX_CLASSES]
    return environment.get_template("page.html").render(
        report=report,
        different=different_options(report.runs),
        matrices={run.name: shares(run.confusion) for run in drawn if run.confusion is not None},
        width=WIDTH,
        height=HEIGHT,
    )


def different_options(runs: Sequence[RunView]) -> dict[str, list[str]]:
    """The options in which runs differ, each with its values in the order of the runs; "-" where a run has none."""
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [run.config.get(key, "-") for run in runs] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def shares(confusion: np.ndarray) -> list[list[float | None]]:
    """Each row of i64[K,K] as shares of the pixels of its class; None in the rows of classes that no mask shows."""
    return [[None if np.isnan(share) else share for share in row] for row in row_shares(confusion).tolist()]


def as_png(pixels: np.ndarray) -> str:
    """u8[H,W,3] as a data URI that keeps every colour."""
    return _data_uri(pixels, "PNG", optimize=True)


def as_jpeg(pixels: np.ndarray) -> str:
    """u8[H,W,3] as a data URI, a tenth of a photograph's PNG."""
    return _data_uri(pixels, "JPEG", quality=85)


def _data_uri(pixels: np.ndarray, form: str, **options: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
