"""An exported folder of safetensors, read back as a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from forec_jax.contracts import Method, TrainState
from forec_jax.experiment.workdir import WorkdirError, damage_named
from forec_jax.files import read_json
from forec_jax.models.convert import leaves
from forec_jax.models.weightfile import read_variables

ABOUT = "model.json"
"""What an exported model is, and how it is used."""

_REMEDY = "export it again, or fetch it again"


def is_taken(workdir: Path) -> bool:
    """Whether a folder holds exported weights, and no run of its own."""
    return (workdir / ABOUT).is_file() and not (workdir / "checkpoints").exists()


def weights_file(network: str, networks: tuple[str, ...]) -> str:
    """The file of a network's weights."""
    return "model.safetensors" if len(networks) == 1 else f"model-{network}.safetensors"


def taken_state(workdir: Path, method: Method) -> TrainState:
    """The state that exported weights make; there is no teacher beside them, and nothing to train on from.

    Raises WorkdirError where the folder holds none, or other ones than its config says.
    """
    with damage_named(workdir / ABOUT, _REMEDY):
        about = read_json(workdir / ABOUT)
        networks, step = tuple(map(str, about["networks"])), int(about["trained"]["step"])
        if about["format"] != "safetensors":
            raise WorkdirError(
                f"--workdir={workdir} holds a model exported as {about['format']}, which other programs run; this library "
                "reads the run itself, or one exported by --format=safetensors"
            )
    if unknown := sorted(set(networks) - method.networks.keys()):
        raise WorkdirError(f"{workdir / ABOUT} names the networks {unknown}, which its config does not have; {_REMEDY}")
    params, batch_stats = {}, {}
    for name in networks:
        path = workdir / weights_file(name, networks)
        layout = jax.eval_shape(method.networks[name].init, jax.random.key(0))
        read = read_variables(path, statistics=bool(jax.tree.leaves(layout.batch_stats)))
        _check_layout(path, read, layout)
        params[name] = jax.tree.map(jnp.asarray, read.params)
        batch_stats[name] = {part: jax.tree.map(jnp.asarray, read.batch_stats.get(part, {})) for part in read.params}
    return TrainState(jnp.asarray(step, jnp.int32), params, batch_stats, {}, (), {})


def _check_layout(path: Path, read: Any, layout: Any) -> None:
    """Raises WorkdirError where weights are not those of the network's parts that they name."""
    wanted = {at: leaf.shape for at, leaf in leaves(layout._asdict()) if at[1] in read.params}
    given = {at: leaf.shape for at, leaf in leaves(read._asdict())}
    if wanted != given:
        at = min(wanted.items() ^ given.items())[0]
        raise WorkdirError(
            f"{path}: {'/'.join(at)} is {given.get(at, 'missing')}, the config's network wants {wanted.get(at, 'none')}; "
            f"{_REMEDY}"
        )
