"""Bytes that a training step moves between devices, by collective and by mesh, from the compiled program.

    python benchmarks/collectives.py --config=configs/shapes.py:forec --devices=8

Nothing is run. The compiler is that of the CPU (virtual devices), or with --devices=0 that of the devices that are there;
a GPU's or TPU's compiler may turn an all-reduce followed by a slice into a reduce-scatter. docs/scaling.md has a table.
"""

import argparse

import jax

from forec_jax.config import load_config
from forec_jax.experiment.plan import COLLECTIVES, plan_training


def main() -> None:
    """Prints a row a mesh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes.py:forec")
    parser.add_argument("--devices", type=int, default=8)
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)
    print(f"{'fsdp':>4} {'state MiB':>10} {'peak MiB':>10}" + "".join(f"{kind:>20}" for kind in COLLECTIVES))
    for fsdp in (n for n in (1, 2, 4, 8, 16, 32) if jax.device_count() % n == 0):
        plan = plan_training(load_config(options.config, {"mesh.fsdp": fsdp}))
        moved = "".join(f"{plan.collective_bytes.get(kind, 0) / 2**20:>20.2f}" for kind in COLLECTIVES)
        print(f"{fsdp:>4} {plan.state_bytes / 2**20:>10.2f} {plan.peak_bytes / 2**20:>10.2f}{moved}")


if __name__ == "__main__":
    main()
