// Accuracy by the number of latents that are kept or removed, for each way to choose them.

import { h } from "../dom.js";
import { CATEGORIES, themed } from "../draw/colours.js";
import { curves } from "../draw/curves.js";
import { words } from "../format.js";

const MODES = [
  ["on", "Only the k latents are kept"],
  ["off", "The k latents are removed"],
];

const DASHES = [undefined, [8, 4], [2, 3], [10, 3, 2, 3], [5, 5]];

function linesOf(shown, mode, ks, selections) {
  const lines = shown.curves
    .filter((curve) => curve.mode === mode)
    .map((curve) => {
      const points = new Map(curve.points.map((point) => [point.k, point]));
      const of = (name) => ks.map((k) => points.get(k)?.[name] ?? null);
      const place = selections.indexOf(curve.selection);
      return {
        name: `${words(curve.selection)}${curve.statistics ? ` (${curve.statistics.slice(0, 6)})` : ""}`,
        values: of("accuracy"),
        low: of("ci_low"),
        high: of("ci_high"),
        colour: CATEGORIES[place % CATEGORIES.length],
        dash: DASHES[place % DASHES.length],
      };
    });
  const references = (Array.isArray(shown.references) ? shown.references : []).map((one) => ({
    name: one.name,
    values: ks.map(() => one.accuracy),
    colour: one.name === "original" ? themed("--ink") : themed("--edge"),
    dash: [1, 3],
    points: false,
  }));
  return [...lines, ...references];
}

// {element, close} for the curves of a class (or of all images): {curves, references}.
export function maskingPlots(shown, name) {
  const ks = [...new Set(shown.curves.flatMap((curve) => curve.points.map((point) => point.k)))].sort(
    (a, b) => a - b,
  );
  const selections = [...new Set(shown.curves.map((curve) => curve.selection))];
  const log = ks.length > 2 && ks[0] > 0 && ks[ks.length - 1] > 20 * ks[0];
  const plots = MODES.filter(([mode]) => shown.curves.some((curve) => curve.mode === mode)).map(
    ([mode, title]) => {
      const plot = curves(
        `${title}, accuracy of ${name}`,
        { name: "k", values: ks, log },
        linesOf(shown, mode, ks, selections),
        { range: [0, 1.02], height: 240 },
      );
      return { title, mode, plot };
    },
  );
  return {
    element: h(
      "div",
      { class: "halves" },
      plots.map(({ title, mode, plot }) =>
        h("div", { data: { mode } }, h("h3", null, `${mode}: ${title.toLowerCase()}`), plot.element),
      ),
    ),
    close: () => plots.forEach(({ plot }) => plot.close()),
  };
}
