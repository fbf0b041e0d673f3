"use strict";
// Why a quiet page may be believed: what the harness caught of what was planted, and what runs where.
function rowsTable(rows, empty) {
  if (!rows.length) return make("p", { class: "empty" }, empty);
  const names = [...new Set(rows.flatMap(Object.keys))];
  const text = value => value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, names.map(name => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map(row => make("tr", {}, names.map(name => make("td", { class: typeof row[name] === "number" ? "n" : "" }, text(row[name]))))))));
}

function trustView(about) {
  const test = about.selftest;
  return make("section", { "aria-label": "Trust" },
    make("h2", {}, "The harness, judged", make("small", {}, "real bugs and planted defects: caught, and missed")),
    rowsTable(about.trust, "No score is here. m2check score --json > score.json measures one; m2check dash build --trust score.json shows it."),
    make("h2", {}, "The detector, judged", make("small", {}, "simulated nights whose truth is known")),
    rowsTable(Object.entries(test).map(([what, result]) => ({ what, result })), "No self-test is here. python -m minimax_m2.harness.history.replay makes one."));
}

function deviceView(about) {
  const lanes = about.lanes.map(lane => {
    const last = lane.size - 1, now = lane.series.filter(one => newest(one) === last).length;
    return { lane: lane.name, host: lane.host, "newest night": lane.nights[last][0], series: lane.series.length, "measured then": now, wrong: lane.wrong.length, nights: lane.size };
  });
  return make("section", { "aria-label": "Devices" }, make("h2", {}, "Lanes", make("small", {}, "one chip, one axis")), rowsTable(lanes, ""),
    make("h2", {}, "Levels", make("small", {}, "what was shown with a device, and what without")), rowsTable(about.devices, "Nothing was said of devices."),
    make("h2", {}, "Ops by level", make("small", {}, "what tests showed of each kernel without its device")), rowsTable(about.levels, "No record is here. pytest suites -m npu --levels FILE writes one; m2check dash build --levels FILE shows it."));
}
