"use strict";
// The page keeps nothing that matters: every decision is on the server's disk before the next pair is shown.

const reviewer = new URLSearchParams(location.search).get("reviewer") ?? "";
const byId = (id) => document.getElementById(id);
const asReviewer = `reviewer=${encodeURIComponent(reviewer)}`;
const REASONS = ["anatomy", "texture", "boundary", "artefact"];
const AHEAD = 2; // slices that are fetched on either side of the one that is shown
const KEPT = 200; // pictures that stay in memory

let pairs = [];
let current = 0;
let slice = 0;
let channel = 0;
let mask = true;
let saving = false;
const abouts = new Map(); // by the name of a pair: a promise of what the server says of it
const pictures = new Map(); // by address: a promise of an image that can be shown at once

// ------------------------------------------------------------------ the server

async function ask(address, content) {
  const options = content === undefined ? {} : { method: "POST", body: JSON.stringify(content) };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Start genseg review again and open the address that it prints; what was saved is kept.");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.message);
  return found;
}

const addressOf = (pair) => `pairs/${encodeURIComponent(pair.name)}`;

function aboutOf(pair) {
  if (!abouts.has(pair.name)) {
    const found = ask(addressOf(pair));
    found.catch(() => abouts.delete(pair.name));
    abouts.set(pair.name, found);
  }
  return abouts.get(pair.name);
}

function load(address) {
  if (!pictures.has(address)) {
    const image = new Image();
    image.draggable = false;
    image.src = address;
    const found = image.decode().then(() => image);
    found.catch(() => pictures.delete(address));
    pictures.set(address, found);
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(address);
}

// ------------------------------------------------------------------ what is shown

function windowOf(about) {
  const [low, high] = about.windows[Math.min(channel, about.windows.length - 1)];
  const extent = high - low || 1;
  const level = (low + high) / 2 + (byId("level").value / 100) * extent;
  const half = ((byId("width").value / 100) * extent) / 2;
  return [level - half, level + half];
}

// The slice of the real case at the same height, should it have another number of slices.
function sliceOf(about, part, k) {
  return Math.round((k * (about[part].slices - 1)) / Math.max(1, about.synthetic.slices - 1));
}

function addresses(pair, about, part, k) {
  const [low, high] = windowOf(about);
  const place = `${addressOf(pair)}/${part}/${sliceOf(about, part, k)}`;
  const shown = Math.min(channel, about.channels.length - 1);
  return [`${place}.png?channel=${shown}&low=${low}&high=${high}`, `${place}-outline.png`];
}

const partsOf = (about) => (about.real ? ["synthetic", "real"] : ["synthetic"]);

function prefetch(pair, about, k) {
  for (const part of partsOf(about)) for (const address of addresses(pair, about, part, k)) load(address).catch(() => {});
}

async function draw() {
  const pair = pairs[current];
  const about = await aboutOf(pair);
  if (pair !== pairs[current]) return;
  if (slice === null) slice = about.synthetic.fullest;
  slice = Math.max(0, Math.min(slice, about.synthetic.slices - 1));
  const k = slice;
  const found = await Promise.all(partsOf(about).map((part) => Promise.all(addresses(pair, about, part, k).map(load))));
  if (pair !== pairs[current]) return;
  partsOf(about).forEach((part, i) => {
    const [image, outlines] = found[i];
    image.alt = part === "real" ? `Real case ${pair.source}, slice ${k + 1}` : `Synthetic image ${pair.name}, slice ${k + 1}`;
    outlines.alt = "";
    const frame = document.createElement("div");
    frame.style.aspectRatio = about[part].aspect;
    const box = byId(part).querySelector(".picture");
    // as large as the box allows, whatever the form of the slice
    frame.style[about[part].aspect * box.clientHeight > box.clientWidth ? "width" : "height"] = "100%";
    frame.append(image, outlines);
    box.replaceChildren(frame);
  });
  byId("real").hidden = !about.real;
  byId("slices").hidden = about.synthetic.slices === 1;
  byId("slice").max = about.synthetic.slices - 1;
  byId("slice").value = k;
  byId("at").textContent = `${k + 1} of ${about.synthetic.slices}`;
  byId("window").textContent = windowOf(about).map((end) => Number(end.toPrecision(3))).join(" to ");
  byId("channel").hidden = about.channels.length === 1;
  byId("channel").querySelector("span").textContent = about.channels[Math.min(channel, about.channels.length - 1)];
  byId("stage").dataset.shown = pair.name;
  for (let step = 1; step <= AHEAD; step++)
    for (const near of [k - step, k + step]) if (near >= 0 && near < about.synthetic.slices) prefetch(pair, about, near);
  for (const next of [following(current + 1), (current + 1) % pairs.length])
    aboutOf(pairs[next]).then((other) => prefetch(pairs[next], other, other.synthetic.fullest)).catch(() => {});
}

// One drawing at a time: what is asked for in between is drawn once, when it has ended.
let drawing = false;
let again = false;
async function show() {
  again = true;
  if (drawing) return;
  drawing = true;
  while (again) {
    again = false;
    try {
      await draw();
    } catch (fault) {
      document.querySelectorAll(".picture").forEach((box) => box.replaceChildren());
      say(fault.message, true);
    }
  }
  drawing = false;
}

function say(text, fault = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("fault", fault);
}

function choices() {
  return [...document.querySelectorAll("#reasons input")];
}

function go(index) {
  current = (index + pairs.length) % pairs.length;
  const pair = pairs[current];
  const verdict = pair.verdict;
  slice = null;
  byId("pair").textContent = pair.name;
  byId("source").textContent = pair.source;
  byId("number").value = current + 1;
  choices().forEach((box) => (box.checked = verdict?.reasons.includes(box.value) ?? false));
  const keys = verdict ? [verdict.decision === "accept" ? "a" : "r", String(verdict.rating)] : [];
  document.querySelectorAll("#decide button").forEach((button) => button.classList.toggle("chosen", keys.includes(button.dataset.key)));
  document.querySelectorAll("#decide [data-key]:not([data-key=u])").forEach((button) =>
    button.setAttribute("aria-pressed", keys.includes(button.dataset.key)));
  const judged = pairs.filter((one) => one.verdict).length;
  byId("done").value = judged;
  byId("count").textContent = `${judged} of ${pairs.length}`;
  show();
}

// The next pair from `index` on that is not judged; the pair at `index` if all are.
function following(index) {
  for (let step = 0; step < pairs.length; step++) {
    const candidate = (index + step) % pairs.length;
    if (!pairs[candidate].verdict) return candidate;
  }
  return index % pairs.length;
}

// ------------------------------------------------------------------ decisions

async function saved(work) {
  if (saving) return; // a second key before the answer would judge a pair that nobody has seen
  saving = true;
  try {
    await work();
  } catch (fault) {
    say(`Not saved. ${fault.message}`, true);
  } finally {
    saving = false;
  }
}

function decide(decision, rating = null) {
  return saved(async () => {
    const pair = pairs[current];
    const reasons = decision === "reject" ? choices().filter((box) => box.checked).map((box) => box.value) : [];
    pair.verdict = await ask(`decisions?${asReviewer}`, { pair: pair.name, decision, rating, reasons });
    const rest = pairs.filter((one) => !one.verdict).length;
    const said = `${pair.name}: ${decision}ed${rating ? `, rated ${rating}` : ""}${reasons.length ? ` (${reasons.join(", ")})` : ""}. Saved.`;
    say(rest ? said : `${said} All pairs are judged.`);
    go(rest ? following(current + 1) : current);
  });
}

function undo() {
  return saved(async () => {
    const { pair: name, verdict } = await ask(`undo?${asReviewer}`, {});
    const index = pairs.findIndex((pair) => pair.name === name);
    if (index < 0) return say("There is nothing to undo.");
    pairs[index].verdict = verdict;
    say(`The last decision on ${name} is undone.`);
    go(index);
  });
}

// ------------------------------------------------------------------ keys, buttons, mouse

function move(step) {
  if (slice === null) return;
  slice += step;
  show();
}

function resetWindow() {
  byId("level").value = 0;
  byId("width").value = 100;
  show();
}

function toggleMask() {
  mask = !mask;
  byId("mask").setAttribute("aria-pressed", mask);
  document.querySelectorAll(".picture").forEach((box) => box.classList.toggle("masked", mask));
}

async function nextChannel() {
  channel = (channel + 1) % (await aboutOf(pairs[current])).channels.length;
  show();
}

const ACTIONS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  u: undo,
  n: () => go(following(current + 1)),
  m: toggleMask,
  c: nextChannel,
  w: resetWindow,
  ArrowLeft: () => go(current - 1),
  ArrowRight: () => go(current + 1),
  ArrowUp: () => move(1),
  ArrowDown: () => move(-1),
};
for (let rating = 1; rating <= 5; rating++) ACTIONS[rating] = () => decide(rating >= 3 ? "accept" : "reject", rating);
REASONS.forEach((reason, i) => (ACTIONS[6 + i] = () => {
  const box = choices().find((one) => one.value === reason);
  box.checked = !box.checked;
}));

function onKey(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target.matches("input[type=number], #reviewer");
  const sliding = event.target.matches("input[type=range]") && key.startsWith("Arrow");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || sliding || !byId("keys").checked || !(key in ACTIONS)) return;
  event.preventDefault();
  if (!(event.repeat && !key.startsWith("Arrow"))) ACTIONS[key]();
}

function listen() {
  document.addEventListener("keydown", onKey);
  document.querySelectorAll("button[data-key]").forEach((button) => button.addEventListener("click", () => ACTIONS[button.dataset.key]()));
  byId("slice").addEventListener("input", (event) => {
    slice = Number(event.target.value);
    show();
  });
  for (const id of ["level", "width"]) byId(id).addEventListener("input", show);
  byId("number").addEventListener("change", (event) => {
    const asked = Number(event.target.value);
    go(Number.isInteger(asked) ? Math.max(1, Math.min(asked, pairs.length)) - 1 : current);
  });
  byId("stage").addEventListener("wheel", (event) => {
    if (byId("slices").hidden) return;
    event.preventDefault();
    move(event.deltaY > 0 ? 1 : -1);
  }, { passive: false });
  byId("stage").addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || event.buttons !== 1) return;
    byId("level").valueAsNumber += event.movementY / 2;
    byId("width").valueAsNumber += event.movementX / 2;
    show();
  });
  window.addEventListener("resize", show);
}

async function begin() {
  if (!reviewer.trim()) {
    byId("login").hidden = false;
    byId("reviewer").focus();
    return;
  }
  let found;
  try {
    found = await ask(`pairs?${asReviewer}`);
  } catch (fault) {
    byId("login").hidden = byId("review").hidden = false;
    [...byId("review").children].forEach((part) => (part.hidden = part.id !== "status"));
    say(fault.message, true);
    return;
  }
  pairs = found.pairs;
  byId("who").hidden = byId("review").hidden = false;
  byId("name").textContent = reviewer;
  byId("done").max = byId("number").max = pairs.length;
  byId("total").textContent = `of ${pairs.length}`;
  for (const [name, colour] of found.labels) {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.background = colour;
    item.append(swatch, name);
    byId("labels").append(item);
  }
  document.querySelectorAll(".picture").forEach((box) => box.classList.add("masked"));
  listen();
  go(following(0));
}

begin();
