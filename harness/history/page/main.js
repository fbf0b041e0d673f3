"use strict";
const state = { tab: "overview", lane: -1, words: "", sort: 9, descending: true, least: 0, series: null, all: false };
const TABS = [["overview", "Overview"], ["series", "Series"], ["drift", "Drift"], ["trust", "Trust"], ["devices", "Devices"]];
let ABOUT = null;

const go = place => { location.hash = place; };

function matching() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const lanes = ABOUT.lanes.filter(lane => state.lane < 0 || lane.number === state.lane);
  const series = lanes.map(lane => lane.series.filter(one => words.every(word => one.text.includes(word))));
  const events = ABOUT.events.filter(event => lanes.includes(event.lane) && words.every(word => `${event.what} ${event.cause} ${event.rule} ${event.lane.name} ${event.rows.slice(0, 50).map(row => event.lane.series[row].text).join(" ")}`.toLowerCase().includes(word)));
  return { lanes, series, events };
}

function draw() {
  const main = document.getElementById("main"), { lanes, series, events } = matching();
  drawn.forEach(plot => plot.destroy());
  drawn = [];
  document.querySelectorAll("#tabs button").forEach(tab => { tab.setAttribute("aria-selected", String(tab.dataset.tab === state.tab)); tab.tabIndex = tab.dataset.tab === state.tab ? 0 : -1; });
  const parts = [];
  if (state.tab === "overview") parts.push(eventList(ABOUT, events, state.least), ...lanes.map((lane, n) => series[n].length ? matrix(ABOUT, series[n], lane) : null));
  else if (state.tab === "series") parts.push(state.series ? seriesView(ABOUT, state.series) : seriesTable(ABOUT, series.flat()));
  else parts.push({ drift: driftView, trust: trustView, devices: deviceView }[state.tab](ABOUT));
  main.replaceChildren(...parts.filter(Boolean));
}

function verdict() {
  const live = ABOUT.events.filter(event => !isSettled(event)), count = cause => live.filter(event => event.cause === cause).length;
  const wrong = count("wrong"), unknown = count("unknown"), noise = count("noise"), moved = live.length - wrong - noise;
  const slower = live.filter(event => event.cause === "code" && event.effect > 0 && event.metric !== "error").length;
  const series = ABOUT.lanes.reduce((sum, lane) => sum + lane.series.length, 0), nights = Math.max(...ABOUT.lanes.map(lane => lane.size));
  const last = ABOUT.lanes.map(lane => lane.nights[lane.size - 1][0]).sort().pop();
  const head = document.getElementById("verdict");
  const words = [wrong ? make("span", { class: "bad" }, `${plural(wrong, "result is", "results are")} wrong`) : make("span", { class: "good" }, "Nothing is wrong"),
    moved ? `, ${plural(moved, "event")}` : ", nothing moved", slower ? make("span", {}, `, ${slower} of them slower by our own code`) : "",
    ABOUT.silent.length ? `, ${plural(ABOUT.silent.reduce((sum, line) => sum + line.series, 0), "series", "series")} silent` : "", "."];
  head.replaceChildren(...words);
  const quiet = ABOUT.selftest["false events a month"];
  document.getElementById("summary").textContent = [last, plural(ABOUT.lanes.length, "lane"), `${series.toLocaleString("en")} series`, plural(nights, "night"), `${unknown} unknown`, `${noise} noise`,
    quiet !== undefined ? `detector: ${quiet} false events a month, simulated` : "", ABOUT.simulated ? "ALL NIGHTS ARE SIMULATED" : ""].filter(Boolean).join(" · ");
  document.title = `${wrong} wrong, ${moved} events: MiniMax-M2 nightly ${last}`;
}

function footer() {
  const entries = Object.entries(ABOUT.thresholds).map(([name, value]) => make("div", {}, make("dt", {}, `${name}: `), make("dd", {}, String(value))));
  const tests = Object.entries(ABOUT.selftest).map(([name, value]) => make("div", {}, make("dt", {}, `${name}: `), make("dd", {}, String(value))));
  document.getElementById("footer").replaceChildren(make("strong", {}, "Detector's self-test, simulated"), tests.length ? make("dl", {}, tests) : make("p", {}, "not in this page"),
    make("strong", {}, "Thresholds"), make("dl", {}, entries), make("p", {}, `Built ${ABOUT.built} by ${ABOUT.tool}. Again: m2check dash build. Times are measured; shares of the model's time and of the roof are computed${ABOUT.simulated ? "; the nights of this page are simulated" : ""}.`));
}

function route() {
  const [tab, lane, id] = decodeURIComponent(location.hash.slice(1)).split("/");
  state.tab = TABS.some(([name]) => name === tab) ? tab : "overview";
  const one = id && ABOUT.lanes[Number(lane)];
  state.series = one ? one.series.find(found => found.id === id) || null : null;
  draw();
  scrollTo({ top: 0, behavior: "instant" });
}

function keys(event) {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName), field = document.getElementById("filter");
  if (event.key === "Escape") { if (typing) { field.value = ""; state.words = ""; field.blur(); draw(); } else if (state.series) go("series"); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); field.focus(); }
  const number = Number(event.key);
  if (number >= 1 && number <= TABS.length) go(TABS[number - 1][0]);
  if ((event.key === "j" || event.key === "k") && state.series) {
    const all = matching().series.flat(), at = all.indexOf(state.series), next = all[at + (event.key === "j" ? 1 : -1)];
    if (next) go(`series/${next.lane.number}/${next.id}`);
  }
}

async function start() {
  ABOUT = await opened(document.getElementById("nights").textContent);
  const tabs = document.getElementById("tabs"), select = document.getElementById("lane"), field = document.getElementById("filter");
  const counts = { overview: ABOUT.events.filter(event => !isSettled(event) && event.cause !== "noise").length, drift: ABOUT.drift.reduce((sum, run) => sum + run.cells.filter(cell => cell.used === null || cell.used > 1).length, 0) };
  TABS.forEach(([name, title]) => tabs.append(make("button", { type: "button", role: "tab", "data-tab": name, onclick: () => go(name) }, title, counts[name] ? make("sup", {}, String(counts[name])) : null)));
  tabs.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = [...tabs.children];
    if (step) { const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length]; next.focus(); next.click(); }
  });
  select.append(make("option", { value: -1 }, "all"), ...ABOUT.lanes.map(lane => make("option", { value: lane.number }, lane.name)));
  select.addEventListener("change", () => { state.lane = Number(select.value); state.series = null; draw(); });
  field.addEventListener("input", () => { state.words = field.value; if (state.series) { state.series = null; go("series"); } draw(); });
  addEventListener("keydown", keys);
  addEventListener("hashchange", route);
  verdict();
  footer();
  route();
  document.documentElement.dataset.ready = "true";
}

start().catch(error => {
  document.getElementById("verdict").textContent = "This page cannot read its nights.";
  document.getElementById("summary").textContent = String(error);
});
