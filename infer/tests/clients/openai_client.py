"""The `openai` package completes and streams, and its errors are the ones it knows.

    openai_client.py INFER MODEL
"""

import sys

import openai

from server import serve

PROMPT = "It was the best of times"
GREEDY = " the past year, and the most important"


def check(client, name):
    assert [model.id for model in client.models.list()] == [name]
    assert client.models.retrieve(name).object == "model"

    def create(**more):
        arguments = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}
        return client.completions.create(**arguments)

    whole = create()
    assert whole.object == "text_completion" and whole.model == name
    assert whole.choices[0].text == GREEDY and whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 8)

    pieces = list(create(stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == GREEDY
    assert pieces[-1].usage == whole.usage and pieces[-2].choices[0].finish_reason == "length"

    two = create(prompt=[PROMPT, "Once upon a time"], n=2, temperature=1, seed=11)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == create(temperature=1, seed=11).choices[0].text
    assert two.choices[1].text == create(temperature=1, seed=12).choices[0].text

    scored = create(echo=True, logprobs=3, max_tokens=0).choices[0]
    assert scored.text == PROMPT and len(scored.logprobs.tokens) == 6
    assert scored.logprobs.token_logprobs[0] is None
    assert all(len(top) in (3, 4) for top in scored.logprobs.top_logprobs[1:])

    assert create(stop=["most"]).choices[0].text == " the past year, and the "
    warped = {"top_k": 5, "min_p": 0.02, "repetition_penalty": 1.2}
    texts = {create(temperature=1, seed=3, extra_body=warped).choices[0].text for _ in range(2)}
    assert len(texts) == 1

    # A stream that is left in the middle does no harm.
    with create(max_tokens=1000, stream=True) as stream:
        next(iter(stream))
    assert create().choices[0].text == GREEDY

    for error, arguments in [
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"prompt": [10**6]}),
        (openai.BadRequestError, {"prompt": [5] * 3000}),
        (openai.NotFoundError, {"model": "other"}),
    ]:
        try:
            create(**arguments)
        except error as caught:
            assert caught.body["message"], arguments
        else:
            raise AssertionError(f"{arguments} passed")


def main(infer, model):
    with serve(infer, model, "--model-name", "tiny", "--api-key", "secret") as server:
        url = f"{server.url}/v1"
        check(openai.OpenAI(base_url=url, api_key="secret", max_retries=0), "tiny")
        try:
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        except openai.AuthenticationError:
            pass
        else:
            raise AssertionError("a wrong key opens the server")
    print("openai: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
