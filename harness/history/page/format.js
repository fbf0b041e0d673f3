"use strict";
// Elements and figures. All text from data becomes a text node: nothing of it is ever read as markup.
function make(tag, given = {}, ...children) {
  const svg = ["svg", "path", "rect", "circle", "text", "g", "line", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}

const percent = (log, digits = 1) => {
  const value = 100 * Math.expm1(log);
  return Number.isFinite(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)} %` : "";
};
// What nobody is asked to act on: accepted, or made up for by a later event.
const isSettled = event => Boolean(event.accepted || event.made_up);
const share = value => Number.isFinite(value) ? `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %` : "";
const micros = value => !Number.isFinite(value) ? "" : value >= 1000 ? `${(value / 1000).toFixed(value < 1e4 ? 2 : 1)} ms` : `${value.toPrecision(3)} µs`;
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const CAUSES = {
  wrong: "✕ wrong", code: "■ code", environment: "◆ environment", hardware: "▲ hardware", reference: "● reference",
  method: "▣ method", noise: "○ noise", unknown: "? unknown", silent: "… silent",
};

// A word of a command line, whatever a record calls itself.
const word = text => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`;

// The last nights of a series as a line; a dot where an event began.
function spark(one, event, width = 150, height = 30) {
  const all = values(one, event && event.metric === "error" ? "error" : "corrected");
  const first = Math.max(0, all.length - 90), shown = all.slice(first);
  const known = shown.filter(Number.isFinite);
  const picture = make("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `last ${shown.length} nights` });
  if (known.length < 2) return picture;
  // A disturbed night is cut at the edge: it must not flatten all others.
  const sorted = [...known].sort((a, b) => a - b), low = sorted[Math.floor(sorted.length * 0.03)], high = Math.max(sorted[Math.ceil(sorted.length * 0.97) - 1], low + 0.02);
  const x = n => n / (shown.length - 1) * width, y = v => Math.max(1, Math.min(height - 1, height - 4 - (v - low) / (high - low) * (height - 8)));
  let path = "";
  shown.forEach((v, n) => { if (Number.isFinite(v)) path += `${path ? "L" : "M"}${x(n).toFixed(1)} ${y(v).toFixed(1)}`; });
  picture.append(make("path", { d: path }));
  const at = event ? event.night - first : -1;
  if (at >= 0 && Number.isFinite(shown[at])) picture.append(make("circle", { class: "mark", cx: x(at), cy: y(shown[at]), r: 2.6 }));
  return picture;
}

function toast(text) {
  document.querySelectorAll(".toast").forEach(old => old.remove());
  const told = make("div", { class: "toast", role: "status" }, text);
  document.body.append(told);
  setTimeout(() => told.remove(), 1600);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { style: "position:fixed;opacity:0" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast("Copied");
}
