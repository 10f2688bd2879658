"""The smallest run that the command line trains, for tests of the command line."""

from forec_jax import cli

TINY = [
    "--config.steps=6",
    "--config.evaluate_every=3",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.data.shapes.size=48",
    "--config.data.crop=33",
    "--config.data.labelled=8:0",
    "--config.eval.batch=8",
    "--config.eval.split=tune",
    "--config.eval.bucket=64",
    "--config.eval.pictures=1",
    "--config.model.encoder=unet",  # compiled in half of a ResNet's time
    "--config.model.unet.width=0.03125",
]


def train(workdir, *options, variant="forec"):
    return cli.run(["train", f"--config=configs/shapes.py:{variant}", f"--workdir={workdir}", *TINY, *options])


def error_of(capsys, code):
    assert code == 2
    return capsys.readouterr().err
