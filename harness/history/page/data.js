"use strict";
// The nights, as packing.py packs them: 4 bytes of length, JSON, then planes of thousandths; -32768 is a night without.
const MISSING = -32768;

async function opened(text) {
  const raw = atob(text.trim());
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const planes = count => {
    const low = new Uint8Array(buffer, at, count), high = new Uint8Array(buffer, at + count, count);
    const values = new Int16Array(count);
    at += 2 * count;
    for (let i = 0; i < count; i++) {
      const folded = low[i] | high[i] << 8;
      values[i] = folded >>> 1 ^ -(folded & 1);
    }
    return values;
  };
  about.lanes.forEach((lane, number) => {
    const S = lane.series.length, N = lane.nights.length;
    lane.number = number;
    lane.size = N;
    lane.times = lane.nights.map(([date], n) => Date.parse(`${date}T00:00:00Z`) / 1000 + n);
    lane.own = planes(S * N);
    lane.ratio = planes(S * N);
    lane.error = planes(S * N);
    lane.speed = planes(2 * N);
    lane.series = lane.series.map((row, index) => {
      const [id, op, provider, device, variant, shape, caseId, clock, bound, base, fraction, weight] = row;
      const one = { id, op, provider, device, variant, shape, caseId, clock, bound, base, fraction, weight, lane, row: index };
      one.text = [op, provider, device, variant, shape, id, caseId].join(" ").toLowerCase();
      return one;
    });
  });
  about.events.forEach(event => { event.lane = about.lanes[event.lane]; });
  return about;
}

// One series as numbers: logs, NaN where nothing was measured.
function values(one, name) {
  const { lane, row } = one, N = lane.size, found = new Array(N);
  for (let n = 0; n < N; n++) {
    const own = lane.own[row * N + n], speed = lane.speed[one.bound * N + n];
    const corrected = own === MISSING ? NaN : (own + (speed === MISSING ? 0 : speed)) / 1000;
    if (name === "own") found[n] = own === MISSING ? NaN : own / 1000;
    else if (name === "corrected") found[n] = corrected;
    else if (name === "fraction") found[n] = one.fraction - corrected;
    else {
      const raw = lane[name][row * N + n];
      found[n] = raw === MISSING ? NaN : raw / 1000;
    }
  }
  return found;
}

// The newest night of a series that was measured, -1 where none was.
function newest(one) {
  const { lane, row } = one, N = lane.size;
  for (let n = N - 1; n >= 0; n--) if (lane.own[row * N + n] !== MISSING) return n;
  return -1;
}

function eventsOf(about, one) {
  return about.events.filter(event => event.lane === one.lane && (event.rows.includes(one.row) || event.metric === "canary"));
}
