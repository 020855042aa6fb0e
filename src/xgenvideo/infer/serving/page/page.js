// The page of `xgv serve`: one video at a time, what the model saw of it, questions, and a search of the folder.

const at = (id) => document.getElementById(id);
const player = at("player");
let video = null; // what the server calls the video, its length, and the frames that it sampled
let asking = null; // ends the answer that is being written
let part = null; // the span that is asked about, null for the whole video

function make(tag, about = {}, ...children) {
  const element = Object.assign(document.createElement(tag), about);
  element.append(...children);
  return element;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const tenths = Math.floor((seconds - whole) * 10 + 1e-6);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return (h ? `${h}:${two(m)}` : m) + `:${two(s)}` + (tenths ? `.${tenths}` : "");
}

function tell(text, wrong = false) {
  at("status").textContent = text;
  at("status").className = wrong ? "warn" : "quiet";
}

// ---- speaking to the server

function token() { return sessionStorage.getItem("token"); }

function headers(more = {}) { return token() ? { ...more, authorization: `Bearer ${token()}` } : more; }

async function askForToken() {
  const door = at("door");
  if (!door.open) door.showModal();
  await new Promise((done) => door.addEventListener("close", done, { once: true }));
  sessionStorage.setItem("token", at("token").value.trim());
  at("token").value = "";
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function call(path, body, options = {}) {
  for (;;) {
    const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const typed = body === undefined ? {} : { "content-type": "application/json" };
    const response = await fetch(path, { ...sent, ...options, headers: headers(typed) });
    if (response.status === 401) await askForToken();
    else if (!response.ok) throw new Error(await problem(response));
    else return response;
  }
}

// fetch cannot tell how far an upload is.
function upload(file) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", "v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      const share = event.total ? Math.round((100 * event.loaded) / event.total) : 100;
      tell(share < 100 ? `Sending ${file.name}: ${share} %` : "The model is watching …");
    };
    request.onerror = () => failed(new Error("the server cannot be reached"));
    request.onload = () => {
      if (request.status === 401) return askForToken().then(() => upload(file)).then(done, failed);
      if (request.status === 200) return done(JSON.parse(request.responseText));
      try {
        failed(new Error(JSON.parse(request.responseText).error.message));
      } catch {
        failed(new Error(`the server answered ${request.status}`));
      }
    };
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file, file.name);
    request.send(form);
  });
}

// ---- the video

function show(address) {
  if (player.src.startsWith("blob:")) URL.revokeObjectURL(player.src);
  at("unplayable").hidden = true;
  player.src = address;
  at("screen").hidden = false;
  at("drop").classList.add("small");
  at("frames").replaceChildren();
  at("facts").textContent = "";
  at("log").replaceChildren();
  at("head").style.left = "0";
  clearBar();
}

async function watch(address, name, seen, span = null) {
  if (asking) asking.abort();
  video = null;
  at("send").disabled = true;
  show(address);
  about(null);
  if (span) seek(span[0]);
  tell("The model is watching …");
  try {
    const file = await seen();
    const frames = await (await call(`v1/files/${file.id}/frames`)).json();
    if (player.getAttribute("src") !== address) return; // another was chosen meanwhile
    video = { id: file.id, seconds: file.seconds, windows: file.windows };
    drawFrames(frames.data);
    clearBar();
    const every = frames.every > 1 ? `, every ${frames.every}th is shown` : "";
    const windows = file.windows.length === 1 ? "1 window" : `${file.windows.length} windows`;
    at("facts").textContent = `${name} · ${clock(file.seconds)} · ${file.sampled_frames} frames sampled in ${windows}${every}`;
    if (span && (span[0] > 0 || span[1] < file.seconds - 0.01)) about(span);
    at("send").disabled = false;
    tell("");
    at("text").focus({ preventScroll: true });
  } catch (error) {
    tell(error.message, true);
  }
}

// From now on questions are about a span only, or about the whole video again.
function about(span) {
  part = span;
  at("part").hidden = span === null;
  if (span) at("part-span").textContent = `${clock(span[0])} – ${clock(span[1])}`;
}

function choose(file) {
  if (file) watch(URL.createObjectURL(file), file.name, () => upload(file));
}

function seek(seconds) {
  const go = () => { player.currentTime = Math.min(seconds, Number.isFinite(player.duration) ? player.duration : seconds); };
  if (player.readyState >= 1) go();
  else player.addEventListener("loadedmetadata", go, { once: true });
}

function drawFrames(frames) {
  const items = frames.map((frame) => {
    const picture = make("img", { src: frame.picture, alt: "", loading: "lazy" });
    const button = make("button", { type: "button" }, picture, clock(frame.time));
    button.setAttribute("aria-label", `Go to ${clock(frame.time)}`);
    button.dataset.time = frame.time;
    button.onclick = () => seek(frame.time);
    return make("li", {}, button);
  });
  at("frames").replaceChildren(...items);
}

function onBar(className, start, end) {
  const mark = make("div", { className });
  mark.style.left = `${(100 * start) / video.seconds}%`;
  if (end !== undefined) mark.style.width = `${(100 * (Math.min(end, video.seconds) - start)) / video.seconds}%`;
  at("bar").append(mark);
}

function clearBar() {
  at("bar").replaceChildren(at("head"));
  if (video) for (const [start] of video.windows.slice(1)) onBar("edge", start);
}

function mark(times) {
  clearBar();
  for (const one of times) onBar("span", one.start, one.end);
  for (const button of at("frames").querySelectorAll("button")) {
    const time = Number(button.dataset.time);
    button.classList.toggle("cited", times.some((one) => one.start <= time && time < one.end));
  }
}

player.addEventListener("timeupdate", () => {
  const length = player.duration || (video && video.seconds);
  if (length) at("head").style.left = `${(100 * player.currentTime) / length}%`;
  const buttons = [...at("frames").querySelectorAll("button")];
  const now = buttons.findLast((button) => Number(button.dataset.time) <= player.currentTime + 0.01);
  for (const button of buttons) button.classList.toggle("now", button === now);
  if (now) {
    const strip = at("frames");
    const left = now.offsetLeft - strip.offsetLeft;
    if (left < strip.scrollLeft || left + now.offsetWidth > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = left;
  }
});
player.addEventListener("error", () => { at("unplayable").hidden = false; });
at("bar").addEventListener("click", (event) => {
  const box = at("bar").getBoundingClientRect();
  if (video) seek((video.seconds * (event.clientX - box.left)) / box.width);
});

// ---- questions

// Times that an answer says itself, such as 1:05 or 12.5 s, go to that place too.
const SAID = /\b(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?) ?(?:s|sec|seconds?)\b/g;

function timeButton(text, seconds, label) {
  const button = make("button", { type: "button", className: "time", textContent: text });
  button.setAttribute("aria-label", label || `Go to ${text}`);
  button.onclick = () => { seek(seconds); player.scrollIntoView({ block: "nearest" }); };
  return button;
}

function withTimes(text) {
  const parts = [];
  let done = 0;
  for (const found of text.matchAll(SAID)) {
    const [whole, h, m, s, plain] = found;
    const seconds = plain === undefined ? 3600 * (h || 0) + 60 * m + Number(s) : Number(plain);
    if (!video || seconds > video.seconds) continue;
    parts.push(text.slice(done, found.index), timeButton(whole, seconds));
    done = found.index + whole.length;
  }
  return [...parts, text.slice(done)];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(question) {
  const said = make("p", { className: "said writing" });
  const times = make("p", { className: "times" });
  const asked = make("p", { className: "asked" }, question || "A description");
  if (part) asked.append(" ", make("span", { className: "quiet", textContent: `${clock(part[0])} – ${clock(part[1])}` }));
  const entry = make("li", {}, asked, said, times);
  at("log").append(entry);
  entry.scrollIntoView({ block: "nearest" });
  asking = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  let text = "";
  try {
    const content = [{ type: "text", text: question }, { type: "file", file: { file_id: video.id } }];
    const body = { messages: [{ role: "user", content }], stream: true, times: true, ...(part ? { span: part } : {}) };
    for await (const event of events(await call("v1/chat/completions", body, { signal: asking.signal }))) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content ?? "";
      said.textContent = text;
      if (event.times) cite(times, event.times);
    }
    said.replaceChildren(...withTimes(text || "(nothing)"));
  } catch (error) {
    if (error.name === "AbortError") said.append(" (stopped)");
    else said.append(make("span", { className: "warn", textContent: ` ${error.message}` }));
  }
  said.classList.remove("writing");
  asking = null;
  at("stop").hidden = true;
  at("send").disabled = !video;
}

function cite(place, times) {
  mark(times);
  place.append(make("span", { className: "quiet", textContent: times.length ? "What speaks for it:" : "No span of the video speaks for it." }));
  for (const one of times) {
    const text = `${clock(one.start)} – ${clock(Math.min(one.end, video.seconds))}`;
    const button = timeButton(text, one.start, `Go to ${clock(one.start)}, which makes the answer likelier by ${one.nats.toFixed(1)} nats`);
    button.addEventListener("click", () => about([one.start, one.end]));
    button.title = `${one.nats.toFixed(2)} nats likelier than without any video`;
    place.append(button);
  }
}

at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!video || asking) return;
  ask(at("text").value.trim());
  at("text").value = "";
});
at("all").addEventListener("click", () => about(null));
at("stop").addEventListener("click", () => asking && asking.abort());

// ---- search

at("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = at("query").value.trim();
  if (!query) return;
  try {
    const found = await (await call("v1/search", { query, top: 8 })).json();
    const items = found.data.map((hit) => {
      const button = make("button", { type: "button" },
        make("span", { className: "name", textContent: hit.video }),
        make("span", { className: "number", textContent: `${clock(hit.start)} – ${clock(hit.end)}` }),
        make("span", { className: "number", textContent: hit.score.toFixed(3) }));
      const seen = async () => (await call("v1/files", { url: hit.video })).json();
      button.onclick = () => watch(hit.media, hit.video, seen, [hit.start, hit.end]);
      return make("li", {}, button);
    });
    at("hits").replaceChildren(...(items.length ? items : [make("li", { className: "quiet", textContent: "Nothing is indexed yet." })]));
    indexed(found.indexed_videos);
  } catch (error) {
    at("hits").replaceChildren(make("li", { className: "warn", textContent: error.message }));
  }
});

function indexed(count) {
  at("indexed").textContent = count === null ? "(the folder is being read)" : `(${count} videos)`;
}

// ---- dropping, and the start

at("file").addEventListener("change", () => choose(at("file").files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}

const health = await (await fetch("health")).json();
at("model").textContent = `${health.model} · ${health.identity.slice(0, 12)}`;
at("most").textContent = `at most ${health.max_mb} MB`;
if (health.search) {
  at("find").hidden = false;
  indexed(health.indexed_videos);
}
