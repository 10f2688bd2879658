"""Trained models on the Hugging Face hub: a repository of what `export` writes as safetensors, with a model card."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forec_jax.experiment.export import Wanted, export
from forec_jax.experiment.load import Run
from forec_jax.experiment.taken import ABOUT
from forec_jax.experiment.workdir import damage_named
from forec_jax.files import read_json
from forec_jax.models import WeightsError

CARD = "README.md"

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FETCHED = re.compile(r"[\w-]+\.(json|safetensors)|README\.md")  # nothing in a folder, and nothing that runs


def push(run: Run, network: str, repository: str, *, private: bool) -> str:
    """Puts a run's model into a repository, which is made where there is none; returns its address.

    The hub's client knows who asks: `hf auth login`, or HF_TOKEN. Raises WeightsError where that fails.
    """
    name, revision = _named(repository)
    if revision:
        raise WeightsError(f"--repository={repository}: a model is put on the main branch; leave out @{revision}")
    with tempfile.TemporaryDirectory() as folder, _explained(f"{name} could not be written to"):
        api = _api()
        about = export(run, network, Path(folder), Wanted("safetensors"))
        (Path(folder) / CARD).write_text(model_card(about, name), encoding="utf-8")
        address = str(api.create_repo(name, private=private or None, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{about['trained']['method']} by forec_jax")
    return address


def pull(repository: str, out: Path) -> None:
    """Fetches a model that `push` put into a repository, OWNER/NAME[@REVISION], into the folder `out`, which reads as a run.

    Raises WeightsError where there is none, or it needs a plugin, which is code; `out` stays as it is then.
    """
    name, revision = _named(repository)
    if out.exists() and any(out.iterdir()):
        raise WeightsError(f"--out={out} is not empty; choose another folder")
    with tempfile.TemporaryDirectory() as folder:
        with _explained(f"{repository} could not be fetched"):
            api = _api()
            for file in filter(_FETCHED.fullmatch, api.list_repo_files(name, revision=revision)):
                shutil.copyfile(api.hf_hub_download(name, file, revision=revision), Path(folder) / file)
        _check_fetched(Path(folder), repository)
        shutil.copytree(folder, out, dirs_exist_ok=True)


def model_card(about: Mapping[str, Any], repository: str) -> str:
    """The card of a model, in Markdown, from what model.json says of it."""
    trained, config = about["trained"], about["config"]
    scores, split = trained["scores"] or {}, trained["split"] or {}
    model, data = config["model"], config["data"]
    said = {
        "method": trained["method"],
        "encoder": model["encoder"],
        "data set": data["name"],
        "labelled images, SHA-256 of their list": split.get("labelled"),
        "network": f"{trained['network']} after {trained['step']} steps",
        "seed": config["seed"],
        "devices": scores.get("devices"),
        "mIoU of the last step": _percent(scores.get("last", {}).get("miou")),
        "mIoU of the best step": _percent(scores.get("best", {}).get("miou")),
    }
    rows = [f"| {key} | {_cell(value)} |" for key, value in said.items() if value not in (None, "")]
    per_class = scores.get("per_class", {})
    classes = [f"| {_cell(name)} | {_percent(per_class.get(name)) or ''} |" for name in about["classes"]]
    return "\n".join(
        (
            "---",
            "library_name: forec-jax",
            "pipeline_tag: image-segmentation",
            "tags: [semantic-segmentation, jax]",
            "---",
            f"# {repository.partition('/')[2]}",
            "",
            f"A network for semantic segmentation, trained with `{_cell(trained['method'])}` by forec-jax "
            f"{about['written_by']['forec_jax']}.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "Scores are on the split that the run was evaluated on"
            f" (`{_cell(config['eval']['split'])}`), which may have chosen the best step.",
            "",
            "## Use",
            "",
            "```",
            f"forec-jax pull --repository={repository} --out=model",
            "forec-jax predict --workdir=model --images=photos --out=predictions",
            "```",
            "",
            "```python",
            "import forec_jax",
            "",
            'forec_jax.load("model").predict("photo.jpg").label',
            "```",
            "",
            "Images are divided by 255 and normalised by "
            f"mean {about['preprocessing']['mean']} and std {about['preprocessing']['std']}; `model.json` has the rest.",
            "",
            "## Classes",
            "",
            "| class | IoU |",
            "|---|---|",
            *classes,
            "",
        )
    )


def _named(repository: str) -> tuple[str, str | None]:
    found = _REPOSITORY.fullmatch(repository)
    if found is None:
        raise WeightsError(f"--repository={repository} must be OWNER/NAME, or OWNER/NAME@REVISION to fetch")
    return found[1], found[2]


def _api() -> Any:
    """The hub's own client."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise WeightsError("the hub's client is not installed; pip install 'forec-jax[hub]'") from error
    return HfApi()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what the hub's client raises, whose HTTP library has changed before, into one error."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{what} ({why}); check the name, the connection, and who you are: hf auth login") from error


def _check_fetched(folder: Path, repository: str) -> None:
    """Raises WeightsError where a repository holds no model of this library's, or one that needs code."""
    config = folder / "config.json"
    if not (folder / ABOUT).is_file() or not config.is_file():
        raise WeightsError(f"{repository} holds no model that forec-jax push put there (no {ABOUT})")
    with damage_named(config, "fetch it again"):
        plugin = read_json(config)["plugin"]
    if plugin:
        raise WeightsError(f"{repository} needs a plugin ({plugin!r:.80}), which is code, and is not fetched")


def _cell(value: Any) -> str:
    """A value in a cell of a table."""
    return str(value).replace("|", r"\|").replace("\n", " ")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f} %"
