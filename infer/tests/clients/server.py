"""A server of `infer` on a free port, for as long as a `with` lasts."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import urllib.request

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.content == 'refuse' %}
        {{- raise_exception('This is refused.') }}
    {%- endif %}
    {{- eos_token + message.role + '\\n' + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- eos_token + 'assistant\\n' }}
{%- endif %}
"""


@contextlib.contextmanager
def chat_model(model):
    """A copy of a model with a chat template."""
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "chatty"
        shutil.copytree(model, folder)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        config = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        yield folder


class Server:
    def __init__(self, process, url):
        self.process = process
        self.url = url

    def metric(self, name):
        """The value of one metric."""
        with urllib.request.urlopen(f"{self.url}/metrics") as page:
            lines = page.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.split()[0] == name))

    def resident_bytes(self):
        """The memory that the process holds."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def serve(infer, model, *arguments):
    command = [infer, "serve", "--model", model, "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    if " at http://" not in line:
        raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
    try:
        yield Server(process, line.split(" at ")[1].strip())
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, "the server did not end as it should"
