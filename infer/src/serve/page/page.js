// The page of `infer serve`: a prompt and its continuation as it comes, or a chat with a model that has a chat
// template, and what a text costs in memory.

const at = (id) => document.getElementById(id);
const sliders = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"];

let model = null;
let running = null;
/** The turns of the chat so far, as the server is asked for the next one. */
let turns = [];
/** What is typed in each mode while the page is in the other one. */
const drafts = { chat: "", text: "It was the best of times" };

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

const chats = () => document.body.classList.contains("chat");

/** What both kinds of requests have. */
function request() {
  const body = { stream: true, stream_options: { include_usage: true } };
  for (const name of sliders) body[name] = Number(at(name).value);
  if (at("seed").value !== "") body.seed = Number(at("seed").value);
  return body;
}

/** Asks for a text, and shows it while it comes. */
async function write(path, body, shown) {
  running?.abort();
  const mine = (running = new AbortController());
  at("error").hidden = true;
  at("stop").disabled = false;
  try {
    const response = await ask(path, { method: "POST", body: JSON.stringify(body), signal: mine.signal });
    for await (const { choices, usage } of events(response)) {
      if (mine !== running) return;
      const text = choices[0]?.text ?? choices[0]?.delta?.content;
      if (text) shown.add(text);
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

function proceed() {
  const prompt = at("prompt").value;
  at("echo").textContent = prompt;
  at("made").replaceChildren();
  return write("v1/completions", { prompt, ...request() }, new Shown(at("text"), at("made")));
}

// --- A chat ---------------------------------------------------------------------------------------

function show(role, content) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = content;
  at("turns").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return turn;
}

async function send() {
  const content = at("prompt").value;
  if (running || content === "") return;
  const mine = turns;
  const system = at("system").value;
  const question = { role: "user", content };
  const messages = [...mine, question];
  if (system !== "") messages.unshift({ role: "system", content: system });
  const elements = [show("user", content), show("assistant", "")];
  const shown = new Shown(at("turns"), elements[1]);
  at("prompt").value = "";
  await write("v1/chat/completions", { messages, ...request() }, shown);
  // Another chat has begun meanwhile.
  if (mine !== turns) return;
  if (at("error").hidden || shown.whole !== "") {
    mine.push(question, { role: "assistant", content: shown.whole });
  } else {
    for (const element of elements) element.remove();
    if (chats()) at("prompt").value = content;
    else drafts.chat = content;
  }
}

function begin() {
  running?.abort();
  turns = [];
  at("turns").replaceChildren();
  at("error").hidden = true;
}

/** The text on the page, brought up to date once a frame however fast it comes. */
class Shown {
  whole = "";
  text = "";
  tokens = 0;
  prompt = 0;
  frame = 0;

  /** The text is shown in `made`, which `pane` scrolls. */
  constructor(pane, made) {
    this.pane = pane;
    this.made = document.createTextNode("");
    made.replaceChildren(this.made);
    at("speed").textContent = "–";
    at("count").textContent = "0";
  }

  add(text) {
    this.first ??= performance.now();
    this.last = performance.now();
    this.whole += text;
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
    const pane = this.pane;
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
  if (chats()) send();
  else proceed();
});
at("prompt").addEventListener("keydown", (event) => {
  const sends = event.ctrlKey || event.metaKey || (chats() && !event.shiftKey && !event.isComposing);
  if (event.key !== "Enter" || !sends) return;
  event.preventDefault();
  at("form").requestSubmit();
});
for (const mode of ["chat", "text"]) {
  at(`${mode}-mode`).addEventListener("change", () => {
    drafts[chats() ? "chat" : "text"] = at("prompt").value;
    document.body.classList.toggle("chat", mode === "chat");
    at("prompt").value = drafts[mode];
  });
}
at("new").addEventListener("click", begin);
// The server says so of a model with a chat template.
if ("chat" in document.body.dataset) {
  at("modes").hidden = false;
  at("chat-mode").click();
}
at("stop").addEventListener("click", () => running?.abort());
at("key").addEventListener("change", load);
load();
