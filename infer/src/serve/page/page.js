// The page of `infer serve`: a prompt, its continuation as it comes, and what a text costs in memory.

const at = (id) => document.getElementById(id);
const sliders = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"];

let model = null;
let running = null;

// --- The server -----------------------------------------------------------------------------------

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The response, or an error with what the server says. */
async function ask(path, options = {}) {
  const response = await fetch(path, { headers: headers(), ...options });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answers ${response.status}`);
}

/** The JSON of each server-sent event, until `[DONE]`. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection has ended before the text");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// --- A text ---------------------------------------------------------------------------------------

function request() {
  const body = { prompt: at("prompt").value, stream: true, stream_options: { include_usage: true } };
  for (const name of sliders) body[name] = Number(at(name).value);
  if (at("seed").value !== "") body.seed = Number(at("seed").value);
  return body;
}

async function go() {
  running?.abort();
  const mine = (running = new AbortController());
  const shown = new Shown(at("prompt").value);
  at("error").hidden = true;
  at("stop").disabled = false;
  try {
    const body = JSON.stringify(request());
    const response = await ask("v1/completions", { method: "POST", body, signal: mine.signal });
    for await (const { choices, usage } of events(response)) {
      if (mine !== running) return;
      if (choices[0]?.text) shown.add(choices[0].text);
      // A piece may hold several tokens: this is what there really were.
      if (usage) shown.end(usage.completion_tokens, usage.prompt_tokens);
    }
  } catch (error) {
    if (mine !== running) return;
    if (error.name !== "AbortError") complain(error);
  }
  at("stop").disabled = true;
  running = null;
}

/** The text on the page, brought up to date once a frame however fast it comes. */
class Shown {
  text = "";
  tokens = 0;
  prompt = 0;
  frame = 0;

  constructor(prompt) {
    at("echo").textContent = prompt;
    this.made = at("made").appendChild(document.createTextNode(""));
    at("made").replaceChildren(this.made);
    at("speed").textContent = "–";
    at("count").textContent = "0";
  }

  add(text) {
    this.first ??= performance.now();
    this.last = performance.now();
    this.text += text;
    this.tokens += 1;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  end(tokens, prompt) {
    Object.assign(this, { tokens, prompt });
    cancelAnimationFrame(this.frame);
    this.draw();
  }

  draw() {
    this.frame = 0;
    const pane = at("text");
    const follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
    this.made.appendData(this.text);
    this.text = "";
    if (follows) pane.scrollTop = pane.scrollHeight;
    at("count").textContent = this.tokens;
    const seconds = (this.last - this.first) / 1000;
    if (seconds > 0) at("speed").textContent = ((this.tokens - 1) / seconds).toFixed(1);
    mark(this.prompt + this.tokens);
  }
}

function complain(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
}

// --- The memory curve -----------------------------------------------------------------------------

const box = { left: 46, right: 304, top: 10, bottom: 164 };
const shape = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const bytes = ({ fixed, per_token }, tokens) => fixed + per_token * tokens;
const size = (n) => {
  const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(n) / 10)));
  return `${+(n / 1024 ** unit).toPrecision(3)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};

// Both axes are logarithmic: from a token to 64 Ki of them.
const last = 16;
let x, y;

function draw() {
  const { student, teacher } = model.infer.memory;
  const all = [student, teacher].flatMap((it) => [bytes(it, 1), bytes(it, 2 ** last)]);
  const low = Math.floor(Math.log2(Math.min(...all)));
  const high = Math.ceil(Math.log2(Math.max(...all)));
  x = (tokens) => box.left + ((box.right - box.left) * Math.log2(Math.max(1, tokens))) / last;
  y = (n) => box.bottom - ((box.bottom - box.top) * (Math.log2(n) - low)) / (high - low);
  const memory = at("memory");
  memory.replaceChildren();
  const label = (text, attributes) => {
    const element = shape("text", attributes);
    element.textContent = text;
    memory.append(element);
  };
  const step = Math.max(1, Math.round((high - low) / 4));
  for (let power = low; power <= high; power += step) {
    const height = y(2 ** power);
    memory.append(shape("line", { class: "grid", x1: box.left, x2: box.right, y1: height, y2: height }));
    label(size(2 ** power), { x: box.left - 5, y: height + 3, "text-anchor": "end" });
  }
  for (const power of [0, 4, 8, 12, 16]) {
    const text = 2 ** power < 1024 ? 2 ** power : `${2 ** (power - 10)}Ki`;
    label(text, { x: x(2 ** power), y: box.bottom + 14, "text-anchor": "middle" });
  }
  label("tokens", { x: (box.left + box.right) / 2, y: box.bottom + 25, "text-anchor": "middle" });
  for (const [kind, it] of Object.entries({ teacher, student })) {
    const points = Array.from({ length: last + 1 }, (_, i) => `${x(2 ** i)},${y(bytes(it, 2 ** i))}`);
    memory.append(shape("polyline", { class: `curve ${kind}`, points: points.join(" ") }));
  }
}

/** Where a text of so many tokens stands. */
function mark(tokens) {
  if (!model) return;
  document.querySelector("#memory .dot")?.remove();
  const here = { class: "dot", r: 4.5, cx: x(tokens), cy: y(bytes(model.infer.memory.model, tokens)) };
  at("memory").append(shape("circle", here));
  document.querySelector(".legend .here").hidden = false;
}

// --- The page -------------------------------------------------------------------------------------

async function load() {
  try {
    const response = await ask("v1/models");
    model = (await response.json()).data[0];
    at("model").textContent = model.id;
    document.title = `${model.id} · infer`;
    at("architecture").textContent = model.infer.memory.architecture;
    at("architecture").hidden = false;
    at("status").textContent = "ready";
    at("max_tokens").max = Math.min(1024, model.infer.max_tokens);
    at("error").hidden = true;
    draw();
  } catch (error) {
    at("status").textContent = "not ready";
    complain(error);
  }
}

for (const name of sliders) {
  const slider = at(name);
  const show = () => (slider.parentElement.querySelector("output").textContent = slider.value);
  slider.addEventListener("input", show);
  show();
}
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("stop").addEventListener("click", () => running?.abort());
at("key").addEventListener("change", load);
load();
