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

// Where the names stand: right, left, above or below of their points, and nowhere if all these places are
// taken.
function namePlaces(points, at) {
  const taken = points.map((_, i) => [at[i][0] - 7, at[i][1] - 7, at[i][0] + 7, at[i][1] + 7]);
  return points.map((row, i) => {
    const [x, y] = at[i];
    const wide = 6.4 * row.sae.length;
    const tries = [
      ["start", x + 11, y + 4],
      ["end", x - 11, y + 4],
      ["middle", x, y - 12],
      ["middle", x, y + 19],
    ];
    for (const [anchor, tx, ty] of tries) {
      const left = tx - (anchor === "start" ? 0 : anchor === "end" ? wide : wide / 2);
      const box = [left, ty - 9, left + wide, ty + 3];
      const free =
        box[0] >= SIZE.left &&
        box[2] <= SIZE.width &&
        box[1] >= 0 &&
        taken.every(
          (other, j) =>
            j === i || box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3],
        );
      if (!free) continue;
      taken.push(box);
      return { anchor, x: tx, y: ty };
    }
    return null;
  });
}

// `rows` have `sae`, `href` and the columns; `picked` the key of one.
export function frontier(rows, across, upwards, picked) {
  const points = rows.filter(
    (row) =>
      row[across] !== null &&
      row[across] !== undefined &&
      row[upwards] !== null &&
      row[upwards] !== undefined,
  );
  const kind = kindFor(points.map((row) => row[across]));
  const [low, high] = rangeOf(
    points.map((row) => row[across]),
    kind,
  );
  const [bottom, top] = rangeOf(
    points.map((row) => row[upwards]),
    "linear",
  );
  const pad = (top - bottom) * 0.08 || 0.05;
  const x = makeScale(
    kind === "log" ? "log" : "linear",
    kind === "log" ? low / 1.15 : low - (high - low) * 0.06,
    kind === "log" ? high * 1.15 : high + (high - low) * 0.06,
  );
  const y = makeScale("linear", bottom - pad, top + pad);
  const px = (value) => SIZE.left + x.to(value) * (SIZE.width - SIZE.left - SIZE.right);
  const py = (value) => SIZE.top + (1 - y.to(value)) * (SIZE.height - SIZE.top - SIZE.bottom);
  const kinds = [...new Set(points.map((row) => row.kind || ""))];
  const grid = [
    ...x.ticks(6).map((tick) => [
      svg("line", {
        class: "axis",
        x1: px(tick.at),
        x2: px(tick.at),
        y1: SIZE.top,
        y2: SIZE.height - SIZE.bottom,
      }),
      svg(
        "text",
        { class: "soft", x: px(tick.at), y: SIZE.height - SIZE.bottom + 15, "text-anchor": "middle" },
        tick.text,
      ),
    ]),
    ...y.ticks(5).map((tick) => [
      svg("line", {
        class: "axis",
        x1: SIZE.left,
        x2: SIZE.width - SIZE.right,
        y1: py(tick.at),
        y2: py(tick.at),
      }),
      svg("text", { class: "soft", x: SIZE.left - 6, y: py(tick.at) + 4, "text-anchor": "end" }, tick.text),
    ]),
  ];
  const at = points.map((row) => [px(row[across]), py(row[upwards])]);
  const places = namePlaces(points, at);
  const marks = points.map((row, n) => {
    const [cx, cy] = at[n];
    const place = places[n];
    const i = kinds.indexOf(row.kind || "");
    const chosen = row.sae_key === picked;
    const text =
      `${row.sae}: ${words(across)} ${number(row[across])}, ${words(upwards)} ` +
      `${number(row[upwards])}${chosen ? ", picked" : ""}`;
    return svg(
      "a",
      { href: row.href, "data-sae": row.sae },
      svg("title", null, text),
      chosen ? svg("circle", { cx, cy, r: 10, fill: "none", stroke: "var(--ink)", "stroke-width": 2 }) : null,
      svg("path", { d: SHAPES[i % SHAPES.length](cx, cy), fill: CATEGORIES[i % CATEGORIES.length] }),
      place
        ? svg(
            "text",
            { x: place.x, y: place.y, "text-anchor": place.anchor, "font-weight": chosen ? 700 : 400 },
            row.sae,
          )
        : null,
    );
  });
  const name = points.find((row) => row.sae_key === picked)?.sae;
  const names = kinds
    .filter(Boolean)
    .map((name, i) =>
      h(
        "span",
        { class: "key" },
        svg(
          "svg",
          { width: 14, height: 14, "aria-hidden": "true" },
          svg("path", { d: SHAPES[i % SHAPES.length](7, 7), fill: CATEGORIES[i % CATEGORIES.length] }),
        ),
        words(name),
      ),
    );
  return h(
    "div",
    null,
    svg(
      "svg",
      {
        viewBox: `0 0 ${SIZE.width} ${SIZE.height}`,
        width: "100%",
        role: "group",
        "aria-label": `${words(upwards)} by ${words(across)} of ${points.length} SAEs`,
      },
      grid,
      marks,
      svg(
        "text",
        { x: (SIZE.left + SIZE.width) / 2, y: SIZE.height - 6, "text-anchor": "middle" },
        words(across),
      ),
      svg(
        "text",
        { x: -(SIZE.height - SIZE.bottom) / 2, y: 12, transform: "rotate(-90)", "text-anchor": "middle" },
        words(upwards),
      ),
    ),
    h("div", { class: "legend" }, names, name ? h("span", { class: "key" }, `◯ picked: ${name}`) : null),
  );
}
