"use strict";
// One series: what it took, what it would have taken at the machine's usual speed, how near the roof, beside the
// accepted build, and its error. One cursor for all; steps, accepted ones and changes of the environment are marked.
const CHARTS = [
  ["Time", "µs, as measured", (one, n) => Math.exp(one.base + n), "own"],
  ["Time at the machine's usual speed", "µs, corrected by the canary", (one, n) => Math.exp(one.base + n), "corrected"],
  ["Share of the roof", "% of what bytes and flops allow", (one, n) => 100 * Math.exp(n), "fraction"],
  ["Beside the accepted build", "% slower, interleaved pairs", (one, n) => 100 * Math.expm1(n), "ratio"],
  ["Error", "% of its bound; 100 is wrong", (one, n) => 100 * Math.exp(n), "error"],
];
let drawn = [];

function seriesView(about, one) {
  known(one);
  const fact = (name, text) => make("div", {}, make("dt", {}, name), make("dd", {}, text || "—"));
  const told = ordered(eventsOf(about, one));
  const place = make("div", { class: "plots" }), reading = make("p", { class: "said mono", "aria-live": "polite" }, "Move over a line to read a night.");
  const view = make("section", { "aria-label": "One series" },
    make("h2", {}, [one.op, one.provider, one.variant, one.shape].filter(Boolean).join(" / "), make("small", {}, one.lane.name)),
    make("dl", { class: "facts" }, fact("tonight", micros(one.now)), fact("of the roof", share(one.roof)), fact("of the error bound", share(one.used)), fact("share of the model's time", share(one.weight)),
      fact("bound by", one.bound ? "arithmetic" : "memory"), fact("timed by", one.clock), fact("case", one.caseId), fact("newest night", one.lane.nights[Math.max(0, one.night)].join(" · "))),
    make("div", { class: "run" }, make("button", { class: "copy", type: "button", onclick: () => copy(`m2check repro ${word(one.caseId)} --with ${word(one.provider)}${one.variant ? ` --variant ${word(one.variant)}` : ""}`) }, "Copy the replay command"), " ", make("a", { href: "#series" }, "all series")),
    reading, place, sampleStrip(one), told.length ? make("h2", {}, "Its events") : null, told.map(eventCard));
  requestAnimationFrame(() => lines(about, one, place, reading));
  return view;
}

// Raw times of the newest night, in the order they were taken: two heaps or a drift hide behind a median.
function sampleStrip(one) {
  const times = one.lane.samples[one.row] || [];
  if (times.length < 2) return null;
  const width = 620, height = 64, low = Math.min(...times), high = Math.max(...times), span = high - low || high * 0.01, middle = [...times].sort((a, b) => a - b)[times.length >> 1];
  const x = n => 10 + n / (times.length - 1) * (width - 20), y = v => height - 10 - (v - low) / span * (height - 20);
  const picture = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${times.length} raw times of the newest night, ${micros(low)} to ${micros(high)}` },
    make("line", { x1: 0, x2: width, y1: y(middle), y2: y(middle), stroke: "var(--line)" }), times.map((v, n) => make("circle", { cx: x(n), cy: y(v), r: 3.2, fill: "var(--accent)" }, make("title", {}, micros(v)))));
  return make("div", { class: "plot", id: "samples" }, make("header", {}, make("h3", {}, "Raw times of the newest night"), make("span", { class: "small" }, `${times.length} of them in the order they were taken; ${micros(low)} to ${micros(high)}, median ${micros(middle)}`)), picture);
}

function lines(about, one, place, reading) {
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const N = one.lane.size, index = [...Array(N).keys()], marks = eventsOf(about, one);
  drawn.forEach(plot => plot.destroy());
  drawn = [];
  for (const [title, unit, shown, name] of CHARTS) {
    const logs = values(one, name);
    if (!logs.some(Number.isFinite)) continue;
    const y = logs.map(v => Number.isFinite(v) ? shown(one, v) : null);
    const box = make("div", { class: "plot" }, make("header", {}, make("h3", {}, title), make("span", { class: "small" }, unit)));
    place.append(box);
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const plot = new uPlot({
      width: Math.max(320, box.clientWidth - 26), height: 138, cursor: { sync: { key: "nights" }, points: { size: 7 } }, legend: { show: false },
      scales: { x: { time: false }, y: { range: (u, low, high) => { const pad = Math.max((high - low) * 0.15, Math.abs(high) * 0.01, 1e-9); return [low - pad, high + pad]; } } },
      axes: [{ ...axis, size: 30, values: (u, ticks) => ticks.map(n => Number.isInteger(n) && one.lane.nights[n] ? one.lane.nights[n][0].slice(2) : "") }, { ...axis, size: 62 }],
      series: [{}, { stroke: colour("--accent"), width: 1.5, points: { show: N < 60, size: 4 }, spanGaps: false }],
      hooks: { draw: [u => annotated(u, one, marks, colour)], setCursor: [u => { if (u.cursor.idx !== null && u.cursor.idx !== undefined) reading.textContent = nightText(one, u.cursor.idx); }] },
    }, [index, y], box);
    drawn.push(plot);
  }
}

function annotated(u, one, marks, colour) {
  const { ctx, bbox } = u;
  const at = n => Math.round(u.valToPos(n - 0.5, "x", true)) + 0.5;
  ctx.save();
  for (const [night] of one.lane.ticks) {
    ctx.strokeStyle = colour("--environment");
    ctx.beginPath(); ctx.moveTo(at(night), bbox.top); ctx.lineTo(at(night), bbox.top + 9); ctx.stroke();
  }
  for (const event of marks) {
    ctx.strokeStyle = colour(event.cause === "wrong" ? "--bad" : `--${event.cause}`);
    ctx.setLineDash(event.accepted ? [2, 4] : [6, 3]);
    ctx.beginPath(); ctx.moveTo(at(event.night), bbox.top); ctx.lineTo(at(event.night), bbox.top + bbox.height); ctx.stroke();
  }
  ctx.restore();
}

function nightText(one, n) {
  const [date, commit] = one.lane.nights[n], tick = one.lane.ticks.find(([night]) => night === n);
  const read = CHARTS.map(([title, , shown, name]) => [title, values(one, name)[n], shown]).filter(([, v]) => Number.isFinite(v));
  return [`${date} ${commit}`, ...read.map(([title, v, shown]) => `${title.toLowerCase()} ${shown(one, v).toPrecision(4)}`), tick ? `changed: ${tick[1]}` : ""].filter(Boolean).join("  ·  ");
}
