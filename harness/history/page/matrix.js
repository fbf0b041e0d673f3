"use strict";
// Op by provider: share of the roof tonight, what moved, what is wrong; ops by their share of the model's time.
// A cividis-like scale: one direction of lightness, told apart by every kind of eye.
const SCALE = [[234, 236, 240], [190, 203, 214], [139, 165, 188], [88, 127, 163], [43, 90, 137], [10, 52, 104]];

function fill(value) {
  const at = Math.max(0, Math.min(1, value)) * (SCALE.length - 1), low = Math.floor(at), high = Math.min(low + 1, SCALE.length - 1), t = at - low;
  const rgb = SCALE[low].map((c, i) => Math.round(c + (SCALE[high][i] - c) * t));
  return { fill: `rgb(${rgb})`, on: at > 2.4 ? "#fff" : "#14202c" };
}

function matrix(about, all, lane) {
  const series = all.filter(one => newest(one) >= 0);
  const shapes = [...new Set(series.map(one => one.shape))].sort(), part = make("section", { "aria-label": `Matrix of ${lane.name}` });
  for (const shape of shapes) {
    const here = series.filter(one => one.shape === shape);
    const columns = [...new Set(here.map(one => [one.provider, one.variant].filter(Boolean).join(" ")))].sort((a, b) => b.startsWith("ours") - a.startsWith("ours") || a.localeCompare(b));
    const weights = new Map(here.map(one => [one.op, one.weight])), ops = [...weights.keys()].sort((a, b) => weights.get(b) - weights.get(a) || a.localeCompare(b));
    const most = Math.max(...weights.values(), 1e-9), cells = new Map();
    here.forEach(one => cells.set(`${one.op}\u001f${[one.provider, one.variant].filter(Boolean).join(" ")}`, one));
    const head = make("tr", {}, make("th", { scope: "col" }, "op"), make("th", { scope: "col" }, "share of time"), columns.map(name => make("th", { scope: "col" }, name)));
    const rows = ops.slice(0, state.all ? ops.length : 24).map(op => make("tr", {}, make("td", { class: "op" }, op),
      make("td", { class: "quiet" }, make("span", { class: "weight" }, make("i", { style: `width:${100 * weights.get(op) / most}%` })), share(weights.get(op))),
      columns.map(name => make("td", {}, cell(about, cells.get(`${op}\u001f${name}`))))));
    part.append(make("h2", {}, `${shape || "cases"}, op by provider`, make("small", {}, `${lane.name} · share of the measured roof on the newest night`)),
      make("div", { class: "scroll" }, make("table", { class: "matrix" }, make("thead", {}, head), make("tbody", {}, rows))));
    if (ops.length > rows.length) part.append(make("button", { class: "more", type: "button", onclick: () => { state.all = true; draw(); } }, `${ops.length - rows.length} more ops`));
  }
  return part;
}

function cell(about, one) {
  const night = one ? newest(one) : -1;
  if (night < 0) return make("span", { class: "cell none", title: "not measured" }, "·");
  const fraction = Math.exp(values(one, "fraction")[night]), wrong = one.lane.wrong.includes(one.row), stale = night < one.lane.size - 1;
  const moved = eventsOf(about, one).filter(event => event.metric === "time" && !isSettled(event) && event.cause !== "noise" && event.rows.includes(one.row)).pop();
  const colours = fill(fraction), arrow = moved ? (moved.effect > 0 ? "▲" : "▼") : "";
  const told = `${one.op}, ${one.provider}: ${share(fraction)} of the roof${moved ? `, ${percent(moved.effect)} since ${moved.date}` : ""}${wrong ? ", wrong" : ""}${stale ? `, not measured since ${one.lane.nights[night][0]}` : ""}`;
  return make("button", { class: `cell${wrong ? " wrong" : ""}`, type: "button", style: `--fill:${colours.fill};--on:${colours.on}`, title: told, "aria-label": told, onclick: () => go(`series/${one.lane.number}/${one.id}`) },
    make("span", {}, share(fraction)), make("span", {}, [wrong ? "✕" : stale ? "…" : "✓", arrow ? ` ${arrow}` : ""].join("")));
}
