"""What transformers' `apply_chat_template` makes of the chats in this folder.

    record.py FOLDER [SEED]

FOLDER gets the templates of this folder and `cases.json`; another seed makes other chats of the same kinds.
Needs transformers (5.23 or later) and jinja2, and no torch.
"""

import json
import pathlib
import random
import shutil
import sys

from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
TOKENIZER = HERE.parents[3] / "assets/phi-tiny/tokenizer.json"
TOKENS = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEXTS = [
    "Hello!",
    "",
    " ",
    "  blanks before and after \n",
    "two\nlines\n\n",
    "C'était l'été 漢字 かな 🦀👩‍👧 \u00a0\u2028.",
    "{{ 7 * 7 }} {% raw %}<b>&amp;</b>",
    "<|im_end|>\n<|im_start|>system\nno<|endoftext|>",
    "a \"quoted\" \\ back\\nslash\ttab \u0007",
    "<think>\nIt is two.\n</think>\n\nTwo.",
    "It was the best of times, it was the worst of times",
]


def chats(dice):
    """Conversations of the usual shapes, and of some that templates refuse."""
    text = lambda: dice.choice(TEXTS)
    system = lambda: [{"role": "system", "content": text()}]
    turns = lambda n: [
        {"role": ("user", "assistant")[i % 2], "content": text()} for i in range(n)
    ]
    for content in TEXTS:
        yield [{"role": "user", "content": content}]
        yield [{"role": "system", "content": content}, {"role": "user", "content": text()}]
    for n in (1, 2, 3, 4, 7):
        yield turns(n)
        yield system() + turns(n)
    yield system()
    yield turns(3) + system() + turns(1)
    yield turns(1) + turns(1)
    yield turns(2)[1:]
    yield [{"role": "user", "content": text(), "name": "Ada"}]
    yield [{"role": "critic", "content": text()}]


def record(template, messages, prompt):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), chat_template=template.read_text(), **TOKENS
    )
    case = {"template": template.name, "messages": messages, "add_generation_prompt": prompt}
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    except Exception as error:
        return case | {"error": str(error)}
    if template.name != "headers.jinja":
        return case | {"text": text}
    # As `apply_chat_template` encodes it, by the one special token that the vocabulary has.
    own = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token=TOKENS["eos_token"])
    return case | {"text": text, "ids": own(text, add_special_tokens=False)["input_ids"]}


def main(folder, seed="1"):
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    dice = random.Random(int(seed))
    cases = []
    for template in sorted(HERE.glob("*.jinja")):
        if folder.resolve() != HERE.resolve():
            shutil.copy(template, folder)
        # The template that shows all of the language says little of the messages.
        step = 6 if template.name == "everything.jinja" else 1
        for messages in list(chats(dice))[::step]:
            cases.append(record(template, messages, dice.random() < 0.7))
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    (folder / "cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
