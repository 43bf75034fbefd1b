"""lm-eval evaluates the six tasks through the server, and gets the numbers that `infer eval` gets.

    lm_eval_client.py INFER MODEL

Its documents are the bundled ones; its tokens are made by transformers.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import lm_eval

from server import serve

DATA = pathlib.Path(__file__).parent.parent / "data/eval"
sys.path.append(str(DATA))
from tasks import TASKS, manager

TOLERANCE = 1e-4
# The client keeps room for a token that it has made, and counts the last one, which is only scored.
MAX_LENGTH = 2048
READ = MAX_LENGTH - 2


def natively(infer, model, folder):
    """What `infer eval` says."""
    out = pathlib.Path(folder) / "results.json"
    arguments = ["--data", DATA, "--max-length", str(READ), "--json", out]
    subprocess.run(
        [infer, "eval", "--model", model, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_CACHE_HOME": folder},
    )
    return json.loads(out.read_text())


def through(server, model, folder, **arguments):
    """What lm-eval says of the server's model."""
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": model,
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "max_length": MAX_LENGTH,
            **arguments,
        },
        tasks=[f"local_{task}" for task in TASKS],
        task_manager=manager(folder, DATA),
        bootstrap_iters=0,
        log_samples=True,
    )


def compare(task, results, expected):
    """How far the log-likelihoods are apart; everything else is equal."""
    samples = sorted(results["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    worst = 0.0
    for sample, native in zip(samples, expected["samples"][task], strict=True):
        answers = [answer[0] for answer in sample["resps"]]
        if "is_greedy" in native:
            native["log_likelihoods"] = [native["log_likelihood"]]
            assert (str(answers[0][1]) == "True") == native["is_greedy"], sample
        for answer, log_likelihood in zip(answers, native["log_likelihoods"], strict=True):
            worst = max(worst, abs(float(answer[0]) - log_likelihood))
    assert worst < TOLERANCE, f"{task}: {worst}"
    numbers = results["results"][f"local_{task}"]
    for metric in ("acc", "acc_norm"):
        assert numbers.get(f"{metric},none") == expected["results"][task].get(metric), task
    return worst


def main(infer, model):
    with tempfile.TemporaryDirectory() as folder, serve(infer, model, "--model-name", "tiny") as server:
        expected = natively(infer, model, folder)
        for concurrent, batch in [(1, 8), (8, 4)]:
            results = through(server, model, folder, num_concurrent=concurrent, batch_size=batch)
            worst = max(compare(task, results, expected) for task in TASKS)
            count = sum(len(results["samples"][f"local_{task}"]) for task in TASKS)
            print(f"lm-eval: ok, {count} documents, log-likelihoods apart by {worst:.1e} at most")


if __name__ == "__main__":
    main(*sys.argv[1:])
