// Axes: numbers to 0..1 and back, with ticks. Kinds: linear, log (above 0), symlog (log beyond `linear`,
// also at 0).

import { number } from "../format.js";

function step(span, n) {
  const rough = span / Math.max(1, n);
  const power = 10 ** Math.floor(Math.log10(rough));
  const lead = rough / power;
  return power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
}

function roundTicks(low, high, n) {
  if (!(high > low)) return [low];
  const width = step(high - low, n);
  const ticks = [];
  for (let i = Math.ceil(low / width - 1e-9); i * width <= high + width * 1e-9; i++)
    ticks.push(Number((i * width).toPrecision(12)));
  return ticks;
}

function decades(low, high, n) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return roundTicks(low, high, n);
  const every = Math.max(1, Math.ceil((last - first) / n));
  const ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(Number(`1e${power}`));
  return ticks;
}

function tickText(value) {
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) {
    const power = Math.floor(Math.log10(size) + 1e-9);
    const lead = Number((size / 10 ** power).toPrecision(3));
    const digits = String(power).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻");
    return `${value < 0 ? "−" : ""}${lead === 1 ? "" : `${lead}·`}10${digits}`;
  }
  return number(value, 3);
}

// {to(value) -> 0..1, from(0..1) -> value, ticks(n) -> [{at, text}], kind, low, high}.
export function makeScale(kind, low, high) {
  let bottom = low;
  let top = high;
  if (!(top > bottom)) {
    const pad = kind === "log" ? bottom / 2 : Math.abs(bottom) / 2 || 1;
    bottom -= pad;
    top += pad;
  }
  const forward = {
    linear: (v) => v,
    log: (v) => Math.log10(v),
    symlog: (v) => Math.sign(v) * Math.log10(1 + Math.abs(v)),
  }[kind];
  const back = {
    linear: (t) => t,
    log: (t) => 10 ** t,
    symlog: (t) => Math.sign(t) * (10 ** Math.abs(t) - 1),
  }[kind];
  const start = forward(bottom);
  const span = forward(top) - start;
  const values = (n) => {
    if (kind === "log") return decades(bottom, top, n);
    if (kind === "symlog" && top > 10) return [0, ...decades(1, top, n)];
    return roundTicks(bottom, top, n);
  };
  return {
    kind,
    low: bottom,
    high: top,
    to: (value) => (forward(value) - start) / span,
    from: (share) => back(start + share * span),
    ticks: (n) => values(n).map((at) => ({ at, text: tickText(at) })),
  };
}

// The range of the values that can be drawn: [low, high, number left out].
export function rangeOf(values, kind) {
  let low = Infinity;
  let high = -Infinity;
  let out = 0;
  for (const value of values) {
    if (value === null || value === undefined || !Number.isFinite(value) || (kind === "log" && value <= 0))
      out++;
    else {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low > high ? [0, 1, out] : [low, high, out];
}

// Log for what is positive and spans more than two decades, else linear.
export function kindFor(values) {
  const [low, high] = rangeOf(values, "log");
  return high > 100 * low && values.every((value) => value === null || value >= 0) ? "log" : "linear";
}
