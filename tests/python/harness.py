"""lm-eval's Hugging Face backend runs exported students by the module of Python beside their weights, and gets the
log-likelihoods of `infer eval`.

    harness.py INFER [STUDENT...]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lm_eval

DATA = Path(__file__).parents[2] / "infer/tests/data/eval"
sys.path.append(str(DATA))
from tasks import manager

TASK = "piqa"
# Both compute in f32; a log-likelihood is a sum over a hundred tokens.
TOLERANCE = 1e-3
MAX_LENGTH = 2048


def natively(infer, student, folder):
    """What `infer eval` says of each choice."""
    out = Path(folder) / "results.json"
    options = ["--data", DATA, "--tasks", TASK, "--max-length", str(MAX_LENGTH), "--dtype", "f32", "--json", out]
    subprocess.run(
        [infer, "eval", "--model", student, *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_CACHE_HOME": folder},
    )
    report = json.loads(out.read_text())
    return [sample["log_likelihoods"] for sample in report["samples"][TASK]]


def by_the_harness(student, folder):
    """The same by lm-eval, whose texts are of several lengths in one batch."""
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={
            "pretrained": student,
            "trust_remote_code": True,
            "dtype": "float32",
            "max_length": MAX_LENGTH,
        },
        tasks=[f"local_{TASK}"],
        task_manager=manager(folder, DATA),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(results["samples"][f"local_{TASK}"], key=lambda sample: sample["doc_id"])
    return [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]


def main():
    infer, *students = sys.argv[1:]
    for student in students:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = natively(infer, student, folder), by_the_harness(student, folder)
        pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
        worst = max(abs(a - b) for a, b in pairs)
        assert worst < TOLERANCE, f"{student}: log-likelihoods of {TASK} are apart by {worst:.1e}"
        print(f"{student}: lm-eval's {len(pairs)} log-likelihoods of {TASK} are within {worst:.1e}")


main()
