"""The `openai` package completes, chats and streams, and its errors are the ones it knows.

    openai_client.py INFER MODEL
"""

import sys

import openai
import transformers

from server import chat_model, serve

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


def raises(error, call):
    try:
        call()
    except error as caught:
        return caught.body
    raise AssertionError(f"no {error.__name__}")


def check_chat(client, folder):
    def create(*contents, **more):
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
        arguments = {"model": "chatty", "messages": messages, "max_tokens": 12, "temperature": 0}
        return client.chat.completions.create(**arguments | more)

    # The prompt has the tokens of transformers, and the answer is the text after it.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for messages in [
        [{"role": "user", "content": PROMPT}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é🦀 <|endoftext|>"}],
    ]:
        turn = create(messages=messages)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        text = client.completions.create(model="chatty", prompt=ids, max_tokens=12, temperature=0)
        assert turn.object == "chat.completion" and turn.usage == text.usage
        assert turn.usage.prompt_tokens == len(ids), (turn.usage, ids)
        choice = turn.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", text.choices[0].text)
        assert choice.finish_reason == "length" and choice.logprobs is None
    whole = create(PROMPT)
    greedy = whole.choices[0].message.content

    pieces = list(create(PROMPT, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    deltas = [choice.delta.content or "" for piece in pieces for choice in piece.choices]
    assert "".join(deltas) == greedy
    assert pieces[-1].usage == whole.usage and pieces[-2].choices[0].finish_reason == "length"
    # An answer is sent back as it came, and parts of a text are one.
    answer = whole.choices[0].message
    question = {"role": "user", "content": [{"type": "text", "text": PROMPT}]}
    longer = create(messages=[question, answer, {"role": "user", "content": "And?"}])
    assert longer.choices[0].message.content == create(PROMPT, greedy, "And?").choices[0].message.content

    two = create(PROMPT, n=2, temperature=1, seed=11)
    assert [choice.index for choice in two.choices] == [0, 1]
    second = create(PROMPT, temperature=1, seed=12).choices[0].message
    assert two.choices[1].message == second != two.choices[0].message

    scored = create(PROMPT, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(scored) == 12 and all(len(score.top_logprobs) == 3 for score in scored)
    assert b"".join(bytes(score.bytes) for score in scored).decode() == greedy
    assert all(score.top_logprobs[0].logprob == score.logprob for score in scored)

    stop = greedy[4:7]
    stopped = create(PROMPT, stop=[stop]).choices[0]
    assert stopped.message.content == greedy[: greedy.index(stop)] and stopped.finish_reason == "stop"
    assert create(PROMPT, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3
    with create(PROMPT, max_tokens=1000, stream=True) as stream:
        next(iter(stream))

    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for arguments, param, code in [
        ({"tools": [tool]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages", None),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "messages", None),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"messages": [{"role": "user", "content": "word " * 4000}]}, "messages", "context_length_exceeded"),
    ]:
        body = raises(openai.BadRequestError, lambda: create(PROMPT, **arguments))
        assert (body["param"], body["code"]) == (param, code), (arguments, body)
    raises(openai.NotFoundError, lambda: create(PROMPT, model="other"))


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
        client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
        messages = [{"role": "user", "content": PROMPT}]
        chat = lambda: client.chat.completions.create(model="tiny", messages=messages)
        assert raises(openai.BadRequestError, chat)["code"] == "no_chat_template"
    with chat_model(model) as folder, serve(infer, folder) as server:
        check_chat(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0), folder)
    print("openai: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
