"""Opens students with transformers; see `run`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROJECT = Path(__file__).parents[2]
GOLDENS = Path(os.environ.get("GOLDENS_DIR", PROJECT / "tests/goldens"))
MODULE = PROJECT / "model/src/arch/modeling_mohawk.py"
RECORDED = [
    "student-tiny",
    "student-hybrid",
    "student-grouped",
    "student-silu-bias-expand2",
    "student-llama",
    "student-llama-hybrid",
    "student-llama-rope",
    "student-llama-heads",
    "student-llama-heads-sum",
    "student-qwen2",
]
PROMPT = "It was the best of"


def open_model(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: names for kind, names in report.items() if names}
    assert not wrong, f"{folder}: {wrong}"
    return model.eval()


def compare(name, model, expected):
    """How far the logits are from the expected ones: in f32, whose digits end at 1e-5 of the largest."""
    logits = expected["logits"]
    error = (model(expected["input_ids"]).logits - logits).abs().max() / logits.abs().max()
    assert error < 1e-4, f"{name}: logits are off by {error:.1e} of the largest"
    return error


def compare_whole(name, folder, expected):
    """The logits and the greedy ids of a student."""
    model = open_model(folder)
    error = compare(name, model, expected)
    prompt = expected["input_ids"][:, :5]
    # Where a prompt has the id of the padding, transformers would take it for padding.
    mask = torch.ones_like(prompt)
    greedy = model.generate(prompt, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert torch.equal(greedy, expected["greedy_ids"]), f"{name}: greedy ids differ"
    print(f"{name}: logits within {error:.1e} of the largest, greedy ids equal")


def recorded(name):
    """A recorded student, whose file does not name the module."""
    expected = load_file(GOLDENS / name / "expected.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(GOLDENS / name, folder, dirs_exist_ok=True)
        shutil.copy(MODULE, folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        config["model_type"] = "mohawk_student"
        config["tie_word_embeddings"] = False
        module = MODULE.stem
        config["auto_map"] = {
            "AutoConfig": f"{module}.MohawkConfig",
            "AutoModelForCausalLM": f"{module}.MohawkForCausalLM",
        }
        (Path(folder) / "config.json").write_text(json.dumps(config))
        compare_whole(name, folder, expected)


def exported(infer, folder, expected):
    """A folder that `train` has written: the logits of this project, and the greedy text of `infer`."""
    options = ["--temperature", "0", "--max-tokens", "24", "--dtype", "f32"]
    run = [infer, "generate", "--model", folder, *options, PROMPT]
    theirs = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
    model, tokenizer = open_model(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    error = compare(folder, model, expected)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    ids = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=0)
    ours = tokenizer.decode(ids[0], skip_special_tokens=True)
    theirs = PROMPT + theirs
    assert theirs.strip() == ours.strip(), f"{folder}: {theirs!r} and {ours!r}"
    print(f"{folder}: logits within {error:.1e} of the largest, the text of infer, {ours!r}")


def main():
    infer, students, *folders = sys.argv[1:]
    torch.set_grad_enabled(False)
    for name in RECORDED:
        recorded(name)
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([students, made, *folders], check=True, stdout=subprocess.DEVNULL)
        names = sorted(path.name for path in Path(made).iterdir() if path.is_dir())
        assert names, f"{students} has written no student"
        for name in names:
            folder = Path(made) / name
            compare_whole(name, folder, load_file(folder / "expected.safetensors"))
        for i, folder in enumerate(folders):
            exported(infer, folder, load_file(Path(made) / f"{i}.safetensors"))


main()
