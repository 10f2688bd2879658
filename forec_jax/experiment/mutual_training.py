"""DMT: two networks that label for each other, round after round (Feng et al., Pattern Recognition 2022).

Networks a and b are first trained on the labels, from different weights or on different draws. In each round either goes on
from its own last state, with a new optimiser, beside the masks that the other's last state has written: those pixels of each
class that it is surest of, a larger share of them every round. What a training makes of the masks is `methods/dmt.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from forec_jax.experiment.hand_over import HandOver, masks_stage
from forec_jax.experiment.stages import Stage, TrainingStage
from forec_jax.options import SCALES, must_be, option

PEER = {"a": "b", "b": "a"}
"""The network that labels for each."""

SHARES = must_be(
    "shares above 0 and up to 1, such as 0.2,0.6,1", lambda found: len(found) > 0 and all(0 < s <= 1 for s in found)
)


@dataclass(frozen=True, kw_only=True)
class Mutual(HandOver):
    """DMT's hand-over: one scale, and a share of the pixels for each round."""

    scales: tuple[float, ...] = option((1.0,), "of an image, at which it is labelled", SCALES)
    flips: bool = option(False, "label the mirrored image as well; the mean of all probabilities counts")
    shares: tuple[float, ...] = option(
        (0.2, 0.4, 0.6, 0.8, 1.0), "of each class's pixels, the surest, that are labelled: one for each round", SHARES
    )


def dmt(configs: Mapping[str, ConfigDict], workdir: Path, how: Mutual) -> list[Stage]:
    """DMT's stages; `configs` are those of "first_a", "first_b", "rounds_a" and "rounds_b".

    A seed that both networks have is one more for b: they would be the same network otherwise.
    """
    del workdir
    for kind in ("first", "rounds"):
        a, b = configs[f"{kind}_a"], configs[f"{kind}_b"]
        if a.seed == b.seed:
            b.seed = (b.seed + 1) % 2**32
    for own in PEER:
        rounds = configs[f"rounds_{own}"].model
        rounds.weights_network, rounds.weights_checkpoint = how.network, how.checkpoint
    stages: list[Stage] = [TrainingStage(_training(own, 0), configs[f"first_{own}"]) for own in PEER]
    for number, share in enumerate(how.shares, start=1):
        before = number - 1
        labelled = {"keep_pixels": share, "pixel_confidence": True}
        stages += [masks_stage(_folder(own, before), _training(own, before), how, **labelled) for own in PEER]
        for own, peer in PEER.items():
            takes = {"model.weights": _training(own, before), "data.pseudo": _folder(peer, before)}
            stages.append(TrainingStage(_training(own, number), configs[f"rounds_{own}"], takes))
    return stages


def _training(network: str, after: int) -> str:
    """The work directory of a network's training of a round; 0 is the first one, on labels alone."""
    return f"{network}_{after}"


def _folder(by: str, after: int) -> str:
    """The folder of the masks that a network writes after a round."""
    return f"masks_by_{by}_{after}"
