"""The harness's own definitions of the six tasks, with the documents of local files."""

from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "winogrande": ("winogrande/default.yaml", "validation"),
}


def manager(folder, data):
    """Tasks `local_TASK`, whose files go to `folder` and whose documents are `data/TASK.jsonl.gz`."""
    definitions = Path(lm_eval.__file__).parent / "tasks"
    for task, (path, split) in TASKS.items():
        splits = {it: it if it == split else "null" for it in ("validation", "test")}
        (Path(folder) / f"{task}.yaml").write_text(f"""
include: {definitions / path}
task: local_{task}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{{split}: {Path(data).resolve() / task}.jsonl.gz}}}}
training_split: null
validation_split: {splits["validation"]}
test_split: {splits["test"]}
""")
    return TaskManager(include_path=str(folder))
