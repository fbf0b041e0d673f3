"use strict";
// What moved: what is wrong first, then what somebody must act on, then by how much of the model's time it is.
const ORDER = ["wrong", "code", "unknown", "environment", "reference", "method", "hardware", "noise"];

function ordered(events) {
  const weight = event => Math.abs(event.effect || 0) * Math.max(event.weight, 1e-4);
  const rank = event => (isSettled(event) ? 100 : 0) + (event.cause === "wrong" ? 0 : event.regression ? 1 : event.cause === "noise" ? 3 : 2);
  return [...events].sort((a, b) => rank(a) - rank(b) || weight(b) - weight(a) || ORDER.indexOf(a.cause) - ORDER.indexOf(b.cause));
}

function eventCard(event) {
  const one = event.lane.series[event.rows[0]];
  const isWrong = event.cause === "wrong", isError = event.metric === "error", isBits = event.metric === "bits";
  const effect = isWrong ? (event.effect === null ? "wrong" : `${event.effect < 1000 ? Number(event.effect.toPrecision(3)) : event.effect.toExponential(1)} × bound`) : isBits ? "other bits" : percent(event.effect);
  const interval = isWrong || event.low === event.high ? "" : `${percent(event.low).replace(" %", "")} to ${percent(event.high)} (95 %)`;
  const meaning = isBits ? "time and error stayed" : isWrong ? "of the error budget" : isError ? "of the error budget" : event.metric === "canary" ? "machine's speed" : event.effect > 0 ? "slower" : "faster";
  const commits = event.bad ? `${event.good.slice(0, 10) || "?"}..${event.bad.slice(0, 10)}` : "";
  const series = event.metric === "canary" ? "the whole lane" : plural(event.rows.length, "case");
  return make("article", { class: `event cause-${event.cause}${isSettled(event) ? " settled" : ""}`, "data-number": event.number },
    make("div", {}, make("span", { class: "badge" }, CAUSES[event.cause]), make("small", {}, event.accepted ? "accepted" : event.made_up ? "made up for" : `event ${event.number || "tonight"}`), make("small", {}, event.date)),
    make("div", {}, make("div", { class: "what" }, one ? make("a", { href: `#series/${one.lane.number}/${one.id}` }, event.what) : event.what, " ", make("small", {}, `${series} · ${event.lane.name}`)),
      make("small", {}, event.accepted ? `Accepted: ${event.accepted}` : event.made_up ? `Event ${event.made_up} took these series back to where they were, or below. ${event.rule}` : event.text || event.rule)),
    make("div", { class: "effect" }, effect, make("small", {}, meaning), make("small", {}, interval)),
    make("div", {}, one ? spark(one, event) : null, make("small", { class: "mono" }, commits), make("small", {}, [event.commits > 1 ? plural(event.commits, "commit") : "", ...event.looks].filter(Boolean).join(" · "))),
    make("div", { class: "run" }, make("code", {}, event.command), make("button", { class: "copy", type: "button", onclick: () => copy(event.command), "aria-label": `Copy the command of event ${event.number}` }, "Copy")));
}

function silentCard(line, about) {
  return make("article", { class: "event cause-silent" }, make("div", {}, make("span", { class: "badge" }, CAUSES.silent)),
    make("div", {}, make("div", { class: "what" }, `${plural(line.series, "series", "series")} ${line.text}`), make("small", {}, about.lanes[line.lane].name)));
}

function eventList(about, chosen, least) {
  const shown = ordered(chosen).filter(event => event.cause === "wrong" || event.metric === "bits" || Math.abs(Math.expm1(event.effect)) * 100 >= least);
  const noise = shown.filter(event => event.cause === "noise" && !isSettled(event)), told = shown.filter(event => !noise.includes(event));
  const list = make("section", { "aria-label": "Events" }, make("h2", {}, "What moved", make("small", {}, "wrong first, then what to act on, then by effect × share of the model's time")));
  const slider = make("input", { type: "range", min: 0, max: 20, step: 1, value: least, "aria-label": "Smallest effect shown, percent", oninput: event => { state.least = Number(event.target.value); draw(); document.querySelector("input[type=range]").focus(); } });
  list.append(make("div", { class: "legend" }, make("label", {}, `effects from ${least} % `, slider), Object.entries(CAUSES).slice(0, 8).map(([name, text]) => make("span", { class: `cause-${name}`, style: "color:var(--tint)" }, text))));
  told.slice(0, 40).forEach(event => list.append(eventCard(event)));
  about.silent.filter(line => state.lane < 0 || line.lane === state.lane).forEach(line => list.append(silentCard(line, about)));
  if (!told.length) list.append(make("p", { class: "empty" }, "Nothing moved that a second look bears out."));
  if (told.length > 40) list.append(make("p", { class: "quiet" }, `${told.length - 40} more: narrow the filter.`));
  if (noise.length) list.append(make("details", {}, make("summary", { class: "quiet" }, `${plural(noise.length, "movement")} without a cause: the same sources, versions and machine's speed`), noise.slice(0, 20).map(eventCard)));
  return list;
}
