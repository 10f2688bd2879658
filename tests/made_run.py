"""Work directories of finished trainings that never ran, for tests of what is read from them."""

import json

from forec_jax.config import chosen, load_config
from forec_jax.data import shapes_dataset
from forec_jax.experiment.run import with_absolute_paths
from forec_jax.files import write_json
from forec_jax.keys import flat

STEPS = 60


def make_run(folder, variant="mean_teacher", options=(), scores=((30, 0.5, 0.4), (60, 0.6, 0.5)), **more):
    """A run on shapes: `scores` are step, mIoU of the teacher (None: it has none) and of the student at each evaluation.

    `more` may say `labelled` (the sum of the labelled images), `images` (how many), `sums` (of the validation images'
    files), and `unfinished`.
    """
    given = {"steps": STEPS, "eval.split": "tune", **dict(options)}
    c = with_absolute_paths(chosen(load_config(f"configs/shapes.py:{variant}", given)))
    dataset = shapes_dataset()
    write_json(folder_of(folder) / "config.json", json.loads(c.to_json()))
    write_json(folder / "labels.json", dataset.labels._asdict())
    write_json(folder / "split.json", {"labelled": more.get("labelled", "l"), "unlabelled": "u", "pseudo": ""})
    write_json(folder / "val.json", list(dataset.sources["val"].ids))
    scored = dict.fromkeys(dataset.source("tune").ids, more.get("sums", ""))
    images = more.get("images", 16)
    trained = {f"train_{i}": "" for i in range(images)}
    write_json(folder / "data.json", {"split": "tune", "scored": scored, "trained": trained, "labelled": images})
    events = []
    for step, teacher, student in scores:
        networks = {"teacher": teacher, "student": student} if teacher is not None else {"student": student}
        found = {f"{name}_miou": miou for name, miou in networks.items()}
        iou = {f"{name}_iou": [miou] * len(dataset.classes) for name, miou in networks.items()}
        events.append({"event": "evaluation", "step": step, **found, **iou})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    best = max(events, key=lambda event: event.get("teacher_miou", event["student_miou"]))["step"]
    for which, step in (("last", scores[-1][0]), ("best", best)):
        (folder / "checkpoints" / which / f"step_{step}").mkdir(parents=True)
    if not more.get("unfinished"):
        write_json(folder / "summary.json", {"steps": STEPS, "config": flat(json.loads(c.to_json()))})
    return folder


def folder_of(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
