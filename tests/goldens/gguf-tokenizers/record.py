"""What other programs make of texts with the kinds of tokenizers that a GGUF file may have.

    record.py FOLDER

FOLDER gets `pieces.json`: a SentencePiece model of byte-pair encoding, trained here on the bundled text, as the keys of
a GGUF file have it, and the ids that the package sentencepiece gives to texts. It gets `words.json`: a byte-level
vocabulary, and for each way to cut a text into words the ids of texts, by the few lines below and the package regex.
Needs sentencepiece 0.2.3, protobuf and regex.
"""

import gzip
import io
import json
import pathlib
import sys
import unicodedata

import regex
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

ROOT = pathlib.Path(__file__).parents[3]
TRAINING = ROOT / "assets/text/pd-validation.json.gz"

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Hello, world!",
    " a blank before",
    "a blank behind ",
    "  two   three    four     blanks",
    "It was the best of times, it was the worst of times",
    "def f(x):\n    return  x\n\n\n\t\ty  # 12345.678e-9",
    "tabs\tand\r\nline ends \n \n  here",
    "naïve café, ÇA VA? ĲSSELMEER",
    "e\u0301 is not é, \u0130 is İ, ﬁ is fi",
    "漢字かな交じり文 한국어 ไทย हिन्दी العربية",
    "🦀 👩‍👩‍👧‍👦 \U0001f3f4\U000e0067\U000e007f 𝔘𝔫𝔦",
    "a\u00a0b\u2003c\u2028d\ufeffe\u200bf",
    "\u2581 is the mark, \u2581\u2581 two of it",
    "<s>not special</s> <unk> <0x41> <|im_end|> [INST]",
    "I'm we'll YOU'RE he'd it'S o'clock 'tis ''quoted''",
    "1 22 333 4444 55555 ½ ²³ Ⅷ ٣٤٥ 1,234.5",
    "x  1 y   22\n 3\n\n 4",
    "snake_case camelCase PascalCase HTTPServer ABCdef ABCДЕФ ßẞ",
    "$1+2=3 <=> ~^|`a` !!! ??? ...—“q” («»)",
    "http://example.org/a/b?c=d&e#f\\g",
    "aaaaaaaaaaaaaaaaaaaaaaaaa abababababab the the thethe",
    "\u0000\u0001\u007f\u0085 controls",
]


def pieces():
    """A SentencePiece model like Llama 2's, and its ids."""
    documents = [json.loads(line)["text"] for line in gzip.open(TRAINING, "rt")]
    text = "\n".join(documents)[:400_000]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=512,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.995,
        num_threads=1,
        minloglevel=2,
    )
    model = model.getvalue()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    cases = []
    for text in TEXTS:
        ids = processor.encode(text)
        cases.append({"text": text, "ids": ids, "decoded": processor.decode(ids)})
    return {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        # The numbers of types are the same in both formats.
        "token_type": [piece.type for piece in proto.pieces],
        "cases": cases,
    }


CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
FIRST = r"[^\r\n\p{L}\p{N}]?"
# What each name stands for: expressions that cut one after the other (what lies between two matches is a word, too),
# and whether a word that is a token is that token.
WORDS = {
    "gpt-2": ([GPT2], False),
    "smollm": ([r"\p{N}", GPT2], False),
    "qwen2": ([f"(?i:{CONTRACTIONS})|{FIRST}" + r"\p{L}+|\p{N}" + REST], False),
    "llama-bpe": ([f"(?i:{CONTRACTIONS})|{FIRST}" + r"\p{L}+|\p{N}{1,3}" + REST], True),
    "tekken": (
        [f"{FIRST}{UPPER}*{LOWER}+|{FIRST}{UPPER}+{LOWER}*" + r"|\p{N}" + REST.replace(r"\r\n]*", r"\r\n/]*")],
        True,
    ),
    "default": ([r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], False),
}


def cut(text, expressions):
    """The words of a text."""
    words = [text] if text else []
    for expression in expressions:
        parts = []
        for word in words:
            end = 0
            for match in regex.finditer(expression, word):
                parts += [word[end : match.start()], match.group()]
                end = match.end()
            parts.append(word[end:])
        words = [part for part in parts if part]
    return words


def alphabet():
    """The letters that stand for bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(visible)))
    return letters


def merged(letters, ranks):
    """The tokens of a word: the pair of the lowest rank is joined, the leftmost of several, until none is left."""
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(letters, letters[1:])) if pair in ranks]
        if not pairs:
            return letters
        _, i = min(pairs)
        letters = letters[:i] + [letters[i] + letters[i + 1]] + letters[i + 2 :]


def words():
    """A vocabulary whose merges reach across words of every kind, so that each cut is seen in the ids."""
    letters = alphabet()
    spell = lambda text: [letters[byte] for byte in text.encode()]
    texts = [spell(text) for text in TEXTS]
    merges = []
    while len(merges) < 400:
        counts = {}
        for text in texts:
            for pair in zip(text, text[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        texts = [merged(text, {best: 0}) for text in texts]
    tokens = sorted(letters.values())
    # A token that two merges make is one.
    tokens += dict.fromkeys(left + right for left, right in merges)
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {pair: i for i, pair in enumerate(merges)}
    # A word that is a token although its letters are joined in another way.
    tokens.append("xyzzy")
    ids["xyzzy"] = len(ids)
    cases = []
    for name, (expressions, whole) in WORDS.items():
        for text in [*TEXTS, "xyzzy xyzzy"]:
            plain = unicodedata.normalize("NFC", text) if name == "qwen2" else text
            found = []
            for word in cut(plain, expressions):
                spelt = spell(word)
                whole_word = "".join(spelt)
                found += [whole_word] if whole and whole_word in ids else merged(spelt, ranks)
            cases.append({"pre": name, "text": text, "ids": [ids[token] for token in found]})
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in merges], "cases": cases}


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, record in [("pieces", pieces()), ("words", words())]:
        with open(folder / f"{name}.json", "w", encoding="utf-8") as file:
            json.dump(record, file, ensure_ascii=True)
            file.write("\n")


main()
