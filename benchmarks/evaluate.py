"""Images a second at whole-image evaluation, and how many programs it compiles.

    python benchmarks/evaluate.py --root=VOCdevkit --split=val --encoder=resnet50 --images=64 --json

The first pass compiles one program a bucket of shapes; the second is timed. The weights are random: time does not depend
on them. The last line is JSON.
"""

import argparse
import json
import sys
from typing import Any

import jax
from input_pipeline import prepared_source
from measure import peak_process_bytes, seconds_of, table
from workload import LABELS, Workload

from forec_jax.cli import use_huge_pages
from forec_jax.contracts import Variables
from forec_jax.data import Source, Subset
from forec_jax.evaluation import Evaluator
from forec_jax.experiment import build
from forec_jax.parallel import make_mesh, replicated

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of the event


def make_evaluator(values: argparse.Namespace) -> tuple[Evaluator, dict[str, Variables]]:
    """The evaluator of the flags' network, and the network's first variables."""
    workload = Workload(
        "supervised", values.encoder, values.output_stride, values.batch, 321, values.dtype, values.decoder_channels
    )
    c = workload.config()
    c.eval.batch, c.eval.bucket = values.batch, values.bucket
    mesh = make_mesh()
    method = build.build_method(c, LABELS)
    params, batch_stats, _, _ = jax.jit(method.init, out_shardings=replicated(mesh))(jax.random.key(0))
    return build.build_evaluator(c, method, LABELS, mesh), {
        name: Variables(params[name], batch_stats[name]) for name in params
    }


def first_images(source: Source, count: int) -> Source:
    """The first images of a source; all of them where count is 0."""
    return Subset(source, tuple(range(min(count, len(source))))) if count else source


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="", help="the folder that holds VOC2012/; empty: the embedded shapes data")
    parser.add_argument("--prepared", default="", help="as data.prepared")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=0, help="how many of the split; 0: all")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--output-stride", type=int, default=16, choices=(8, 16, 32))
    parser.add_argument("--decoder-channels", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=8, help="as eval.batch")
    parser.add_argument("--bucket", type=int, default=128, help="as eval.bucket")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    source = first_images(prepared_source(values.root, values.split, values.prepared), values.images)
    evaluator, variables = make_evaluator(values)
    compiles: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiles.append(seconds) if event == COMPILED else None
    )
    first = seconds_of(lambda: evaluator(variables, source))
    second = seconds_of(lambda: evaluator(variables, source))
    result = {
        "images": len(source),
        "compiles": len(compiles),
        "compile s": sum(compiles),
        "first pass s": first,
        "second pass s": second,
        "images/s": len(source) / second,
        "peak process MiB": round(peak_process_bytes() / 2**20),
    }
    if not values.json:
        print(f"{values.encoder}, output stride {values.output_stride}, batch {values.batch}\n\n{table([result])}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])
