"use strict";
// All series as a table: sorted by any column, filtered by any word, each with its last ninety nights.
const COLUMNS = [
  ["op", one => one.op], ["provider", one => one.provider], ["variant", one => one.variant], ["shape", one => one.shape],
  ["last nights", null],
  ["time", one => one.now, "n", one => micros(one.now)], ["30 nights", one => one.trend, "n", one => percent(one.trend)],
  ["of roof", one => one.roof, "n", one => share(one.roof)], ["of error bound", one => one.used, "n", one => share(one.used)],
  ["share of time", one => one.weight, "n", one => share(one.weight)], ["night", one => one.lane.nights[Math.max(0, one.night)][0]],
];

const middle = numbers => {
  const known = numbers.filter(Number.isFinite).sort((a, b) => a - b);
  return known.length ? known[known.length >> 1] : NaN;
};

// Figures of the newest night, once for each series.
function known(one) {
  if (one.night === undefined) {
    one.night = newest(one);
    const at = one.night, corrected = values(one, "corrected");
    one.now = at < 0 ? NaN : Math.exp(one.base + values(one, "own")[at]);
    one.roof = at < 0 ? NaN : Math.exp(one.fraction - corrected[at]);
    one.used = at < 0 ? NaN : Math.exp(values(one, "error")[at]);
    one.trend = middle(corrected.slice(-5)) - middle(corrected.slice(-35, -5));
  }
  return one;
}

function seriesTable(about, chosen) {
  chosen.forEach(known);
  const [name, value] = COLUMNS[state.sort] || COLUMNS[9], sign = state.descending ? -1 : 1;
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : (Number.isFinite(a) ? a : -Infinity) - (Number.isFinite(b) ? b : -Infinity);
  const sorted = [...chosen].sort((a, b) => sign * compare(value(a), value(b)) || a.text.localeCompare(b.text));
  const head = make("tr", {}, COLUMNS.map(([title, sortable, kind], n) => make("th", { scope: "col", class: kind, "aria-sort": sortable && n === state.sort ? (state.descending ? "descending" : "ascending") : null },
    sortable ? make("button", { type: "button", onclick: () => { state.descending = n === state.sort ? !state.descending : kind === "n"; state.sort = n; draw(); } }, title) : title)));
  const body = make("tbody");
  const row = one => make("tr", {}, COLUMNS.map(([title, sortable, kind, shown], n) => make("td", { class: kind },
    !sortable ? spark(one, eventsOf(about, one).filter(event => event.metric === "time").pop(), 130, 22) : n === 0 ? make("a", { href: `#series/${one.lane.number}/${one.id}` }, one.op) : (shown || sortable)(one))));
  let count = 0;
  const more = make("button", { class: "more", type: "button", onclick: () => grow(200) }, "");
  const grow = step => {
    sorted.slice(count, count + step).forEach(one => body.append(row(one)));
    count = Math.min(sorted.length, count + step);
    more.hidden = count >= sorted.length;
    more.textContent = `${sorted.length - count} more`;
  };
  grow(60);
  return make("section", { "aria-label": "Series" }, make("h2", {}, plural(chosen.length, "series", "series"), make("small", {}, `by ${name}; j and k step through them when one is open`)),
    make("div", { class: "scroll" }, make("table", { id: "series" }, make("thead", {}, head), body)), more);
}
