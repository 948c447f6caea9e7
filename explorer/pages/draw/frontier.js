// SAEs by sparsity and by what they lose: points with names on a small SVG plot.

import { h, svg } from "../dom.js";
import { number, words } from "../format.js";
import { CATEGORIES } from "./colours.js";
import { kindFor, makeScale, rangeOf } from "./scales.js";

const SIZE = { width: 520, height: 300, left: 56, right: 16, top: 14, bottom: 42 };
const SHAPES = [
  (x, y) => `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0`,
  (x, y) => `M${x - 5} ${y - 5}h10v10h-10z`,
  (x, y) => `M${x} ${y - 6}l6 11h-12z`,
  (x, y) => `M${x} ${y - 6}l6 6l-6 6l-6 -6z`,
];

// `rows` have `sae`, `href` and the columns; `picked` the key of one.
export function frontier(rows, across, upwards, picked) {
  const points = rows.filter((row) => row[across] !== null && row[across] !== undefined && row[upwards] !== null && row[upwards] !== undefined);
  const kind = kindFor(points.map((row) => row[across]));
  const [low, high] = rangeOf(points.map((row) => row[across]), kind);
  const [bottom, top] = rangeOf(points.map((row) => row[upwards]), "linear");
  const pad = (top - bottom) * 0.08 || 0.05;
  const x = makeScale(kind === "log" ? "log" : "linear", kind === "log" ? low / 1.15 : low - (high - low) * 0.06, kind === "log" ? high * 1.15 : high + (high - low) * 0.06);
  const y = makeScale("linear", bottom - pad, top + pad);
  const px = (value) => SIZE.left + x.to(value) * (SIZE.width - SIZE.left - SIZE.right);
  const py = (value) => SIZE.top + (1 - y.to(value)) * (SIZE.height - SIZE.top - SIZE.bottom);
  const kinds = [...new Set(points.map((row) => row.kind || ""))];
  const grid = [
    ...x.ticks(6).map((tick) => [svg("line", { class: "axis", x1: px(tick.at), x2: px(tick.at), y1: SIZE.top, y2: SIZE.height - SIZE.bottom }),
      svg("text", { class: "soft", x: px(tick.at), y: SIZE.height - SIZE.bottom + 15, "text-anchor": "middle" }, tick.text)]),
    ...y.ticks(5).map((tick) => [svg("line", { class: "axis", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: py(tick.at), y2: py(tick.at) }),
      svg("text", { class: "soft", x: SIZE.left - 6, y: py(tick.at) + 4, "text-anchor": "end" }, tick.text)]),
  ];
  const marks = points.map((row) => {
    const [cx, cy] = [px(row[across]), py(row[upwards])];
    const i = kinds.indexOf(row.kind || "");
    const chosen = row.sae_key === picked;
    const text = `${row.sae}: ${words(across)} ${number(row[across])}, ${words(upwards)} ${number(row[upwards])}${chosen ? ", picked" : ""}`;
    return svg("a", { href: row.href, "aria-label": text, "data-sae": row.sae }, svg("title", null, text),
      chosen ? svg("circle", { cx, cy, r: 10, fill: "none", stroke: "var(--ink)", "stroke-width": 2 }) : null,
      svg("path", { d: SHAPES[i % SHAPES.length](cx, cy), fill: CATEGORIES[i % CATEGORIES.length] }),
      svg("text", { x: cx > SIZE.width - 120 ? cx - 12 : cx + 12, y: cy + 4, "text-anchor": cx > SIZE.width - 120 ? "end" : "start",
        "font-weight": chosen ? 700 : 400 }, points.length <= 24 || chosen ? row.sae : ""));
  });
  const name = points.find((row) => row.sae_key === picked)?.sae;
  const names = kinds.filter(Boolean).map((name, i) => h("span", { class: "key" }, svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
    svg("path", { d: SHAPES[i % SHAPES.length](7, 7), fill: CATEGORIES[i % CATEGORIES.length] })), words(name)));
  return h("div", null, svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, width: "100%", role: "group",
    "aria-label": `${words(upwards)} by ${words(across)} of ${points.length} SAEs` }, grid, marks,
  svg("text", { x: (SIZE.left + SIZE.width) / 2, y: SIZE.height - 6, "text-anchor": "middle" }, words(across)),
  svg("text", { x: -(SIZE.height - SIZE.bottom) / 2, y: 12, transform: "rotate(-90)", "text-anchor": "middle" }, words(upwards))),
  h("div", { class: "legend" }, names, name ? h("span", { class: "key" }, `◯ picked: ${name}`) : null));
}
