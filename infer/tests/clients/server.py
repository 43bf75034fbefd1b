"""A server of `infer` on a free port, for as long as a `with` lasts."""

import contextlib
import subprocess
import urllib.request


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
