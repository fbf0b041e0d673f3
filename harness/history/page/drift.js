"use strict";
// Drift runs as `m2check drift` writes them: where a model leaves the reference, layer by layer and step by step.
function driftView(about) {
  const part = make("section", { "aria-label": "Drift" });
  if (!about.drift.length) part.append(make("p", { class: "empty" }, "No drift run is here. m2check drift writes one; m2check dash build --drift FILE shows it."));
  about.drift.forEach(run => part.append(
    make("h2", { class: "run-title" }, `${run.model}: ${run.candidate} beside ${run.reference}`, make("small", {}, `${plural(run.tokens, "token")}, ${run.dtype}, run ${run.run}`)),
    heatmap(run), make("div", { class: "beside" }, (run.runs || []).map(found => growth(run, found)))));
  return part;
}

// Log of the share of a budget: grey to blue within it, orange to red beyond.
function heat(used) {
  if (used === null || !Number.isFinite(used)) return "#7a0f0f";
  if (used > 1) return `hsl(${Math.max(8, 32 - 10 * Math.log10(used))} 88% ${Math.max(36, 58 - 7 * Math.log10(used))}%)`;
  const t = Math.max(0, 1 + Math.log10(Math.max(used, 1e-3)) / 3);
  return fill(t * 0.8).fill;
}

function heatmap(run) {
  const phases = [...new Set(run.cells.map(cell => cell.phase))], part = make("div", { class: "beside" });
  for (const phase of phases) {
    const cells = run.cells.filter(cell => cell.phase === phase), names = [...new Set([...(run.columns || []), ...cells.map(cell => cell.step)])].filter(step => cells.some(cell => cell.step === step));
    const layers = [...new Set(cells.map(cell => cell.layer))].sort((a, b) => a - b), size = layers.length > 30 ? 11 : 18, left = 58, top = 106, width = left + names.length * 26 + 40, height = top + layers.length * size + 8;
    const picture = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Layers by steps, ${phase}` });
    names.forEach((name, x) => picture.append(make("text", { x: 0, y: 0, transform: `translate(${left + x * 26 + 14} ${top - 6}) rotate(-50)` }, name)));
    const said = make("p", { class: "said mono", "aria-live": "polite" }, "Point at a cell, or step through them by Tab.");
    layers.forEach((layer, y) => {
      if (layers.length <= 30 || y % 5 === 0) picture.append(make("text", { x: left - 8, y: top + y * size + size / 2 + 4, "text-anchor": "end" }, layer < 0 ? "before" : layer >= run.layers ? "after" : `layer ${layer}`));
      cells.filter(cell => cell.layer === layer).forEach(cell => {
        const told = `layer ${cell.layer} ${cell.step} (${cell.op}): ${cell.outcome}, ${cell.used === null ? "no finite share" : `${Number(cell.used).toPrecision(3)} of its budget`}${cell.explanation ? `; ${cell.explanation}` : ""}`;
        const show = () => { said.textContent = [told, ...(cell.evidence || [])].join("  ·  "); };
        picture.append(make("rect", { x: left + names.indexOf(cell.step) * 26, y: top + y * size, width: 24, height: size - 2, rx: 2, fill: cell.outcome === "reference's own" ? "var(--faint)" : heat(cell.used), tabindex: 0, role: "img", "aria-label": told, onfocus: show, onmouseenter: show }));
      });
    });
    part.append(make("div", {}, make("h2", {}, `${phase}, each step alone`, make("small", {}, "on the reference's inputs, as share of its budget")),
      make("div", { class: "legend" }, [[0.01, "1 % of the budget"], [0.3, "30 %"], [1.0, "its edge"], [3, "3 ×"], [100, "100 ×"]].map(([v, text]) => make("span", {}, make("i", { style: `background:${heat(v)};display:inline-block;width:1rem;height:.7rem;border-radius:2px;margin-right:.35rem` }), text))),
      make("div", { class: "heat" }, picture), said));
  }
  return part;
}

// How the error of the residual stream grows, with the band in which right models stray.
function growth(run, found) {
  const curve = found.curve || [], low = found.low || [], high = found.high || [];
  if (!curve.length) return make("div");
  const width = 600, height = 190, all = [...curve, ...low, ...high].filter(v => v > 0), least = Math.log10(Math.min(...all)), most = Math.log10(Math.max(...all)) + 0.1;
  const x = n => 50 + n / Math.max(1, curve.length - 1) * (width - 70), y = v => height - 24 - (Math.log10(Math.max(v, 10 ** least)) - least) / (most - least || 1) * (height - 44);
  const path = numbers => numbers.map((v, n) => `${n ? "L" : "M"}${x(n).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const picture = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Error by layer, ${found.mode}` });
  if (low.length && high.length) picture.append(make("path", { d: `${path(high)}${low.map((v, n) => `L${x(low.length - 1 - n).toFixed(1)} ${y(low[low.length - 1 - n]).toFixed(1)}`).join("")}Z`, fill: "var(--line)" }));
  picture.append(make("path", { d: path(curve), fill: "none", stroke: "var(--accent)", "stroke-width": 1.8 }));
  for (let power = Math.floor(least); power <= most; power++) for (const digit of [1, 2, 5]) {
    const value = digit * 10 ** power, at = Math.log10(value);
    if (at >= least && at <= most && (digit === 1 || most - least < 2.5)) picture.append(make("text", { x: 2, y: y(value) + 4 }, value.toExponential(0)));
  }
  if (found.leaves !== null && found.leaves !== undefined) picture.append(make("circle", { cx: x(found.leaves), cy: y(curve[found.leaves]), r: 4, fill: "var(--bad)" }));
  const odd = found.odd || [], first = odd[0], isTie = one => one.gap <= one.room;
  const strip = odd.length ? make("div", {}, make("p", { class: "small" }, `first token that differs: position ${first.position}, ${isTie(first) ? "a tie within what rounding moves" : "no tie: the logits are further apart than rounding moves them"}`),
    make("div", { class: "tokens", role: "img", "aria-label": `${odd.length} positions differ` }, odd.slice(0, 400).map(one => make("span", { style: `background:var(${isTie(one) ? "--noise" : "--bad"})`, title: `position ${one.position}: ${one.actual} instead of ${one.expected}, gap ${Number(one.gap).toPrecision(3)}, room ${Number(one.room).toPrecision(3)}` })))) : null;
  const flips = (found.flips || []).length;
  return make("div", {}, make("h2", {}, `Growth, ${found.mode}`, make("small", {}, [found.leaves === null || found.leaves === undefined ? "never leaves the band of right models" : `leaves the band at ${found.leaves}`, flips ? plural(flips, "routing flip") : "", Number.isFinite(found.agreement) ? `${share(found.agreement)} of tokens agree` : ""].filter(Boolean).join(" · "))), make("div", { class: "heat" }, picture), strip);
}
