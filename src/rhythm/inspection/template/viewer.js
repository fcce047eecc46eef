
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLUMNS = [
  ["prompt", (r) => r.group],
  ["reward", (r) => r.reward],
  ["advantage", (r) => r.advantage],
  ["tokens", (r) => r.length],
  ["credit", (r) => r.means.credit],
  ["entropy", (r) => r.means.entropy],
].filter(([, of]) => data.responses.some((r) => of(r) !== null && of(r) !== undefined));
const rows = new Map(); // response -> its row in the list
const sorting = { column: null, descending: false };
let signal = data.signals.find((s) => s.name === "credit") ?? data.signals[0];
let response = null;
let decoded = null; // of the response: ids, marks, values by signal
let told = null; // the token whose values are shown

// ---- numbers

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function unpack(text, size) {
  const view = new DataView(bytes(text).buffer);
  const read = size === 2 ? (i) => view.getUint16(i, true) : (i) => view.getUint32(i, true);
  return Array.from({ length: view.byteLength / size }, (_, k) => read(k * size));
}

function values(of, text) {
  const step = (of.high - of.low) / data.steps;
  return unpack(text, 2).map((k) => (k > data.steps ? NaN : of.low + k * step));
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "undefined";
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

// ---- the list

function fillList() {
  for (const [name, of] of COLUMNS) {
    const head = document.createElement("th");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => sort(name, of));
    head.scope = "col";
    head.append(button);
    $("columns").append(head);
  }
  for (const r of data.responses) {
    const row = document.createElement("tr");
    for (const [, of] of COLUMNS) row.insertCell().textContent = shown(of(r));
    row.tabIndex = -1;
    row.setAttribute("aria-selected", "false");
    row.addEventListener("click", () => select(r));
    row.addEventListener("keydown", (event) => walk(event, row, "ArrowUp", "ArrowDown"));
    row.addEventListener("focus", () => select(r));
    rows.set(r, row);
    $("completions").append(row);
  }
}

function sort(name, of) {
  sorting.descending = sorting.column === name ? !sorting.descending : true;
  sorting.column = name;
  const last = (v) => v === null || v === undefined;
  const order = [...data.responses].sort((a, b) => {
    if (last(of(a)) || last(of(b))) return last(of(a)) - last(of(b));
    return (of(a) - of(b)) * (sorting.descending ? -1 : 1);
  });
  $("completions").append(...order.map((r) => rows.get(r)));
  for (const head of $("columns").children) {
    const chosen = head.textContent === name;
    if (chosen) head.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function select(r) {
  if (r === response) return;
  if (response) {
    rows.get(response).tabIndex = -1;
    rows.get(response).setAttribute("aria-selected", "false");
  }
  response = r;
  rows.get(r).tabIndex = 0;
  rows.get(r).setAttribute("aria-selected", "true");
  decoded = { ids: unpack(r.tokens, 4), marks: bytes(r.marks), values: {} };
  for (const s of data.signals) if (s.name in r.values) decoded.values[s.name] = values(s, r.values[s.name]);
  $("problem").textContent = r.problem;
  const facts = [`prompt ${r.group}`, `reward ${shown(r.reward)}`, `${r.length} tokens`];
  if (r.advantage !== null) facts.splice(2, 0, `advantage ${shown(r.advantage)}`);
  if (r.truncated) facts.push("truncated");
  $("facts").textContent = facts.join(", ");
  fillTokens();
}

function walk(event, element, back, forth) {
  const next = {
    [back]: element.previousElementSibling,
    [forth]: element.nextElementSibling,
    Home: element.parentElement.firstElementChild,
    End: element.parentElement.lastElementChild,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  next?.focus();
}

// ---- the tokens

function fillTokens() {
  hide();
  const spans = decoded.ids.map((id, i) => {
    const span = document.createElement("span");
    const text = data.vocabulary[id];
    span.className = "token";
    span.classList.toggle("preplan", (decoded.marks[i] & 1) !== 0);
    span.classList.toggle("anchor", (decoded.marks[i] & 2) !== 0);
    span.textContent = text === "" ? "▯" : text.replaceAll("\n", "↵\n");
    span.dataset.i = i;
    span.tabIndex = i === 0 ? 0 : -1;
    return span;
  });
  $("tokens").replaceChildren(...spans);
  paint();
}

function paint() {
  const of = decoded.values[signal.name];
  const [low, high] = signal.scale;
  for (const span of $("tokens").children) {
    const value = of ? of[span.dataset.i] : NaN;
    const share = signal.signed ? Math.abs(value) / high : (value - low) / (high - low);
    const v = Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 0;
    span.style.setProperty("--v", v.toFixed(3));
    span.classList.toggle("undefined", Number.isNaN(value));
    span.classList.toggle("negative", signal.signed && value < 0);
  }
}

function show(span) {
  const i = Number(span.dataset.i);
  const table = document.createElement("table");
  for (const s of data.signals) {
    if (!(s.name in decoded.values)) continue;
    const row = table.insertRow();
    row.className = s === signal ? "chosen" : "";
    row.insertCell().textContent = s.label;
    const value = decoded.values[s.name][i];
    row.insertCell().textContent = shown(value) + (Number.isNaN(value) || !s.unit ? "" : ` ${s.unit}`);
  }
  const roles = ["", ", preplan", ", anchor", ", preplan and anchor"][decoded.marks[i]];
  const text = document.createElement("code");
  text.textContent = JSON.stringify(data.vocabulary[decoded.ids[i]]);
  $("tip").replaceChildren(text, ` token ${i + 1} of ${response.length}${roles}`, table);
  $("tip").hidden = false;
  span.setAttribute("aria-describedby", "tip");
  told = span;
  place();
}

function place() {
  if (told === null) return;
  const box = told.getBoundingClientRect();
  if (box.bottom < 0 || box.top > innerHeight) return hide();
  const tip = $("tip").getBoundingClientRect();
  const left = Math.max(4, Math.min(box.left, innerWidth - tip.width - 4));
  const below = box.bottom + 6;
  const top = below + tip.height < innerHeight ? below : Math.max(4, box.top - tip.height - 6);
  $("tip").style.left = `${left}px`;
  $("tip").style.top = `${top}px`;
}

function hide() {
  told = null;
  $("tip").hidden = true;
  for (const span of document.querySelectorAll("[aria-describedby=tip]")) span.removeAttribute("aria-describedby");
}

function tokenOf(event) {
  return event.target.closest?.("#tokens > .token");
}

function listen() {
  const tokens = $("tokens");
  tokens.addEventListener("mouseover", (event) => {
    hide();
    if (tokenOf(event)) show(tokenOf(event));
  });
  tokens.addEventListener("mouseleave", hide);
  tokens.addEventListener("focusin", (event) => {
    for (const span of tokens.querySelectorAll("[tabindex='0']")) span.tabIndex = -1;
    event.target.tabIndex = 0;
    hide();
    show(event.target);
  });
  tokens.addEventListener("focusout", hide);
  tokens.addEventListener("keydown", (event) => walk(event, event.target, "ArrowLeft", "ArrowRight"));
  tokens.addEventListener("click", (event) => tokenOf(event)?.focus());
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", place, { passive: true });
}

// ---- the switch

function fillSwitch() {
  for (const s of data.signals) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "signal", value: s.name, checked: s === signal });
    radio.addEventListener("change", () => choose(s));
    label.append(radio, ` ${s.label}`);
    $("signals").append(label);
  }
}

function choose(s) {
  signal = s;
  const [low, high] = s.scale;
  const capped = s.high > high ? "≥ " : "";
  $("low").textContent = (s.signed && s.low < low ? "≤ " : "") + shown(low);
  $("high").textContent = `${capped}${shown(high)} ${s.unit}`;
  $("meaning").textContent = s.meaning;
  $("ramp").classList.toggle("signed", s.signed);
  if (decoded) paint();
}

fillList();
fillSwitch();
listen();
choose(signal);
select(data.responses.find((r) => r.advantage) ?? data.responses[0]); // where there is something to credit
$("marks").hidden = !data.responses.some((r) => bytes(r.marks).some((mark) => mark));
$("rounding").textContent =
  `Values are rounded to 1/${data.steps} of the range of their signal on this page; colours end where 99% of the values lie.`;
