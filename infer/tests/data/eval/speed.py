"""Documents a second of `infer eval` and of lm-evaluation-harness, in turns, with one model.

    speed.py INFER MODEL [--data FOLDER] [--limit N] [--rounds N] [--batch-size N]

Both compute in float32 on the CPU, with as many threads as there are cores. What is timed is the way
from texts to log-likelihoods: loading and reporting are not.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import record
import torch


def infer(program, args, folder):
    """Documents and seconds of one run."""
    out = Path(folder) / "results.json"
    command = [program, "eval", "--backend", "flex", "--model", args.model, "--data", args.data, "--json", out]
    command += ["--limit", str(args.limit)] if args.limit else []
    environment = os.environ | {"XDG_CACHE_HOME": folder}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    report = json.loads(out.read_text())
    return sum(map(len, report["samples"].values())), report["seconds"]


def harness(lm, args):
    """Documents and seconds of one run."""
    lm.seconds = 0.0
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        report = record.evaluate(lm, args.data, args.limit)
    return sum(map(len, report["samples"].values())), lm.seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("infer", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=record.HERE)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(os.cpu_count())
    lm = record.backend(args.model, batch_size=args.batch_size)
    paces = {"infer eval": [], "lm-eval": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name, run in [("infer eval", lambda: infer(args.infer, args, folder)), ("lm-eval", lambda: harness(lm, args))]:
                load = os.getloadavg()[0]
                documents, seconds = run()
                paces[name].append(documents / seconds)
                print(f"{name:10}  {documents} documents in {seconds:6.1f} s, {documents / seconds:6.1f}/s (load before: {load:.1f})", flush=True)
    ours, theirs = (statistics.median(it) for it in paces.values())
    print(f"medians: infer eval {ours:.1f}/s, lm-eval {theirs:.1f}/s: {ours / theirs:.1f} times as many")


if __name__ == "__main__":
    sys.exit(main())
