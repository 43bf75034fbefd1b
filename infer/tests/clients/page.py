"""The page in headless Chromium: a text is written, stopped, repeated by its seed, and drawn; and a chat.

    page.py INFER MODEL [FOLDER FOR SCREENSHOTS]
"""

import json
import pathlib
import sys
import tempfile
import urllib.request

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from server import chat_model, serve


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # Also as root, and where shared memory is small, as it is in containers.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,860"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    return webdriver.Chrome(options=options, service=service)


class Page:
    def __init__(self, driver, url):
        self.driver = driver
        self.url = url
        driver.get(url)
        self.until(lambda: self.text("status") == "ready")

    def find(self, name):
        return self.driver.find_element(By.ID, name)

    def text(self, name):
        return self.find(name).text

    def until(self, condition):
        WebDriverWait(self.driver, 120).until(lambda _: condition())

    def set(self, name, value):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'));"
        self.driver.execute_script(script, self.find(name), str(value))

    def finished(self):
        return not self.find("stop").is_enabled()

    def made(self):
        return self.find("made").get_property("textContent")

    def turns(self):
        """Who has said what in the chat."""
        elements = self.driver.find_elements(By.CSS_SELECTOR, "#turns .turn")
        return [(it.get_attribute("class").split()[1], it.get_property("textContent")) for it in elements]

    def go(self):
        self.find("go").click()
        self.until(self.finished)
        return self.made()

    def dark(self, dark):
        value = "dark" if dark else "light"
        feature = {"name": "prefers-color-scheme", "value": value}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def drive(page, server, shots):
    # A greedy text is the one that the model is known for.
    page.set("temperature", 0)
    page.set("max_tokens", 16)
    assert page.go().startswith(" the past year, and the most important"), page.made()
    assert page.text("count") == "16"
    assert float(page.text("speed")) > 0

    # A seed repeats its text, another gives another.
    page.set("temperature", 1)
    page.set("max_tokens", 160)
    page.set("seed", 3)
    first = page.go()
    assert page.go() == first
    page.set("seed", 4)
    assert page.go() != first

    # The curves are there, and where this text is on one of them.
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#memory .curve")) == 2
    assert page.driver.find_element(By.CSS_SELECTOR, "#memory .dot").is_displayed()
    for dark in (False, True):
        page.dark(dark)
        page.driver.save_screenshot(str(shots / f"page-{'dark' if dark else 'light'}.png"))
    page.driver.set_window_size(420, 1500)
    page.driver.save_screenshot(str(shots / "page-narrow.png"))
    width = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= page.driver.execute_script("return window.innerWidth"), "too wide for a phone"
    page.driver.set_window_size(1200, 860)

    # What the server refuses, it says.
    page.set("prompt", "word " * 4000)
    page.go()
    assert "max_position_embeddings" in page.text("error"), page.text("error")
    page.set("prompt", "")
    page.go()
    assert page.text("error") == ""

    # Stopping stops it, on the server too.
    page.set("max_tokens", 1024)
    page.set("seed", 1)
    page.find("go").click()
    page.until(lambda: page.made() != "")
    page.find("stop").click()
    page.until(page.finished)
    stopped = page.made()
    page.until(lambda: server.metric("infer_sequences_running") == 0)
    assert page.made() == stopped and page.text("error") == ""

    # Markup in a text is text.
    page.set("max_tokens", 16)
    page.set("prompt", "<b>bold</b><script>document.title = 'x'</script>")
    page.go()
    assert page.find("echo").text.startswith("<b>bold</b>")

    severe = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    # The refusal above is one, and the only one.
    assert [("400" in entry["message"]) for entry in severe] == [True], severe
    own = page.url.rstrip("/")
    log = page.driver.get_log("performance")
    requests = [entry["message"] for entry in log if "Network.requestWillBeSent\"" in entry["message"]]
    assert requests and all(own in request for request in requests), "a request went elsewhere"


def drive_chat(page, server, shots):
    shown = lambda css: page.driver.find_element(By.CSS_SELECTOR, css).is_displayed()
    assert shown("#turns") and shown("#system") and not shown("#text")
    page.set("temperature", 0)
    page.set("max_tokens", 16)

    def say(text):
        page.set("prompt", text)
        page.go()
        return page.turns()

    # The turns are those of the server, and each question comes with those before it.
    first = say("Hello")
    assert [role for role, _ in first] == ["user", "assistant"] and first[1][1] != ""
    assert page.text("count") == "16" and page.find("prompt").get_property("value") == ""
    second = say("<b>bold</b>")
    assert second[:2] == first and second[2] == ("user", "<b>bold</b>")
    messages = [{"role": role, "content": content} for role, content in second[:3]]
    assert second[3] == ("assistant", answer(server, messages)), second
    for dark in (False, True):
        page.dark(dark)
        page.driver.save_screenshot(str(shots / f"chat-{'dark' if dark else 'light'}.png"))

    # A new chat knows nothing of it, and may have a system message.
    page.find("new").click()
    assert page.turns() == []
    assert say("Hello") == first
    page.find("new").click()
    page.set("system", "Be brief.")
    told = say("Hello")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert told[1] == ("assistant", answer(server, messages)), told

    # What the template refuses was not said.
    page.set("prompt", "refuse")
    page.find("go").click()
    page.until(lambda: "This is refused." in page.text("error"))
    assert page.turns() == told and page.find("prompt").get_property("value") == "refuse"

    # A turn that is stopped is a turn.
    page.find("new").click()
    page.set("max_tokens", 1024)
    page.set("temperature", 1)
    page.set("prompt", "Go on")
    page.find("go").click()
    page.until(lambda: len(page.turns()) == 2 and page.turns()[1][1] != "")
    page.find("stop").click()
    page.until(page.finished)
    stopped = page.turns()
    page.until(lambda: server.metric("infer_sequences_running") == 0)
    assert page.turns() == stopped and page.text("error") == ""

    # The other mode is still there.
    page.find("text-mode").click()
    assert shown("#text") and not shown("#turns") and not shown("#new")
    page.set("temperature", 0)
    page.set("max_tokens", 16)
    assert page.go().startswith(" the past year, and the most important"), page.made()
    severe = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert [("400" in entry["message"]) for entry in severe] == [True], severe


def answer(server, messages):
    """What the server answers, greedily."""
    body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": 16}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def main(infer, model, shots=None):
    shots = pathlib.Path(shots or tempfile.mkdtemp())
    driver = browser()
    try:
        with serve(infer, model) as server:
            page = Page(driver, server.url)
            assert not page.find("modes").is_displayed() and not page.find("turns").is_displayed()
            drive(page, server, shots)
        with chat_model(model) as folder, serve(infer, folder) as server:
            drive_chat(Page(driver, server.url), server, shots)
    finally:
        driver.quit()
    print("page: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
