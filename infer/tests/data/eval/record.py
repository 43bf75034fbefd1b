"""Evaluates a model by lm-evaluation-harness's Hugging Face backend, on documents of this folder.

    record.py MODEL OUT.json [--tokenizer FOLDER] [--data FOLDER] [--limit N] [--batch-size N]
    record.py MODEL OUT.json --text FILE.jsonl

MODEL is a folder with a Phi, a Phi-Mamba or a hybrid. OUT.json gets every log-likelihood and every
metric; with --text, the log-likelihood of each line's "text" by rolling windows of 512 tokens.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import phi_mamba
from tasks import TASKS, manager

HERE = Path(__file__).parent
WINDOW = 512


class Timed(HFLM):
    """The harness's backend, and the seconds that it took from texts to log-likelihoods."""

    seconds = 0.0

    def loglikelihood(self, *args, **kwargs):
        begun = time.time()
        answers = super().loglikelihood(*args, **kwargs)
        self.seconds += time.time() - begun
        return answers


def backend(model, tokenizer=None, batch_size=16, max_length=None):
    """The harness's backend for a model's folder, on CPU in float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer or model)
    config = json.loads((model / "config.json").read_text())
    if "LanguageModel" in config:
        network = phi_mamba.load(model)
    else:
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return Timed(pretrained=network, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)


def evaluate(lm, data, limit=None):
    """Metrics and log-likelihoods of all tasks; the harness's table goes to standard output."""
    with tempfile.TemporaryDirectory() as folder:
        results = lm_eval.simple_evaluate(
            lm, tasks=[f"local_{task}" for task in TASKS], task_manager=manager(folder, data),
            limit=limit, log_samples=True)
    report = {"results": {}, "samples": {}}
    for task in TASKS:
        numbers = results["results"][f"local_{task}"]
        report["results"][task] = {
            key.removesuffix(",none"): rounded(value)
            for key, value in numbers.items() if key.endswith(",none")}
        samples = sorted(results["samples"][f"local_{task}"], key=lambda it: it["doc_id"])
        report["samples"][task] = [
            {"log_likelihoods": [rounded(answer[0][0]) for answer in it["resps"]],
             "is_greedy": [str(answer[0][1]) == "True" for answer in it["resps"]]}
            for it in samples]
    print(lm_eval.utils.make_table(results))
    count = sum(map(len, report["samples"].values()))
    print(f"{count} documents in {lm.seconds:.1f} s, {count / lm.seconds:.1f} documents/s")
    return report


def roll(lm, path):
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    return {"log_likelihoods": [rounded(it) for it in lm.loglikelihood_rolling(requests)]}


def rounded(number):
    return round(float(number), 6)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data", type=Path, default=HERE)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    lm = backend(args.model, args.tokenizer, args.batch_size, WINDOW if args.text else None)
    report = roll(lm, args.text) if args.text else evaluate(lm, args.data, args.limit)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, lm_eval)}
    # A line for each document.
    text = json.dumps(report | {"versions": versions}, indent=1)
    args.out.write_text(one_line_lists(text) + "\n")


def one_line_lists(text):
    """`text`, with lists of numbers and truth values on one line each."""
    import re
    return re.sub(r"\[[^\[\]{}]*\]", lambda it: " ".join(it[0].split()).replace("[ ", "[").replace(" ]", "]"), text)


if __name__ == "__main__":
    main()
