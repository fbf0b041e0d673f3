"use strict";
// Served, not mailed: what a running night has measured, asked every other second of whoever serves this page.
const LIVE_MS = 2000;
const COUNT_NIGHT = night => `${night.measured} of ${night.planned || "?"} cells`;

function liveCell(one) {
  const ratio = one.ratio === null || one.ratio === undefined ? "" : `${percent(one.ratio)} (${percent(one.low)} to ${percent(one.high)})`;
  return make("tr", { class: one.outcome === "pass" ? "" : "bad" }, make("td", {}, one.op), make("td", {}, one.shape), make("td", {}, one.provider), make("td", {}, one.outcome),
    make("td", { class: "n" }, one.us ? micros(one.us) : ""), make("td", { class: "n" }, ratio), make("td", { class: "n" }, one.used === null ? "" : share(one.used)));
}

function liveView(night, isNew) {
  const date = `${night.run.slice(0, 4)}-${night.run.slice(4, 6)}-${night.run.slice(6, 8)}`;
  const state = night.ended ? "has ended" : night.silent_s > 120 ? `silent for ${Math.round(night.silent_s / 60)} minutes: killed? m2check nightly run goes on with it` : "is under way";
  const heads = ["op", "shape", "provider", "outcome", "time", "beside the accepted build", "of error bound"];
  const rows = night.cells.map(liveCell);
  return [make("h2", {}, `The night of ${date} ${state}`, make("small", {}, `${COUNT_NIGHT(night)}, against ${night.against.slice(0, 12)}, ${night.budget} minutes`)),
    make("progress", { max: 1, value: night.ended ? 1 : night.share, "aria-label": "Share of the plan" }), make("p", { class: "said mono" }, night.told),
    rows.length ? make("div", { class: "scroll" }, make("table", { id: "live-cells" }, make("thead", {}, make("tr", {}, heads.map((name, n) => make("th", { scope: "col", class: n > 3 ? "n" : "" }, name)))), make("tbody", {}, rows))) : null,
    isNew ? make("button", { class: "more", type: "button", onclick: () => location.reload() }, "This page was built again: read it") : null].filter(Boolean);
}

async function follow(box, first) {
  let wait = LIVE_MS;
  try {
    const { night, page } = await (await fetch("/progress")).json();
    first = first || page;
    box.hidden = !night && page === first;
    box.replaceChildren(...(night ? liveView(night, page !== first) : []));
    box.dataset.asked = String(Number(box.dataset.asked || 0) + 1);
  } catch {
    box.replaceChildren(make("p", { class: "empty" }, "The server does not answer. m2check dash serve starts it."));
    wait = 5 * LIVE_MS;
  }
  setTimeout(() => follow(box, first), wait);
}

{
  const box = make("section", { id: "live", "aria-label": "Night under way", hidden: true });
  document.querySelector("nav").before(box);
  follow(box, 0);
}
