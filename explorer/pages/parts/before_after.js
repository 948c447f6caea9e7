// The plots of a remapping: counts before and after, and predictions as latents are kept.

import { go } from "../address.js";
import { h } from "../dom.js";
import { CATEGORIES, themed } from "../draw/colours.js";
import { curves } from "../draw/curves.js";
import { scatter } from "../draw/scatter.js";
import { count, percent, whole } from "../format.js";
import { note, panel } from "./states.js";
import { get } from "../source.js";

export const GROUPS = [
  ["high", "high before and after"],
  ["high_to_low", "high to low"],
  ["low_to_high", "low to high"],
];

const COLOURS = [CATEGORIES[2], CATEGORIES[5], CATEGORIES[0]];
export function plotOf(answer, one) {
  const plot = scatter(`Tokens of ${one.name} per latent`, {
    picked: (latent) =>
      go(["v", (answer.first || answer.second).key, "latent", latent], {
        beside: answer.second ? answer.second.key : null,
      }),
  });
  const points = one.points.filter((point) => point.x > 0 || point.y > 0);
  const top = Math.max(...points.map((point) => Math.max(point.x, point.y)), one.U, 1) * 1.15;
  const of = points.map((point) => 1 + GROUPS.findIndex(([name]) => name === point.group));
  const axis = (name, text) => ({
    name,
    text,
    kind: "symlog",
    values: points.map((point) => point[name]),
    range: [0, top],
  });
  plot.set({
    ids: points.map((point) => point.latent),
    x: axis("x", `before: tokens, ${answer.first ? answer.first.backbone : "first"}`),
    y: axis("y", `after: tokens, ${answer.second ? answer.second.backbone : "second"}`),
    diagonal: true,
    groups: {
      of,
      names: ["neither", ...GROUPS.map(([, text]) => text)],
      colours: [themed("--edge"), ...COLOURS],
    },
    lines: [
      { axis: "x", at: one.U, text: "U" },
      { axis: "y", at: one.U, text: "U" },
      { axis: "x", at: one.L, text: "L", dash: [2, 3], low: true },
      { axis: "y", at: one.L, text: "L", dash: [2, 3], low: true },
    ],
  });
  const n = (group) => points.filter((point) => point.group === group).length;
  const keys = [
    ...GROUPS.map(([name, text], i) => [text, COLOURS[i], n(name)]),
    ["neither", themed("--edge"), n(null)],
  ];
  const out = one.points.length - points.length;
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Before and after"),
      h("span", { class: "soft" }, `U = ${whole(one.U)}, L = ${whole(one.L)} tokens`),
    ),
    { data: { role: "remapping" } },
    plot.element,
    h(
      "div",
      { class: "legend" },
      keys.map(([text, colour, size]) =>
        h("span", { class: "key" }, h("i", { css: { background: colour } }), `${text} (${whole(size)})`),
      ),
    ),
    note(
      `A dot is a latent: its tokens above tau on images of ${one.name}, before and after ` +
        `adaptation. U is the ${answer.upper}-th and L the ${answer.lower}-th largest of ` +
        `both.${out ? ` ${count(out, "latent")} without any ${out === 1 ? "is" : "are"} not drawn.` : ""}`,
    ),
  );
}

export function predictionsPanel(one, closers) {
  const models = ["before", "after"].filter((model) => one.predictions.some((row) => row.model === model));
  if (!models.length) return null;
  const rows = one.predictions.filter((row) => !row.classes || row.classes === one.predictions[0].classes);
  const ks = [...new Set(rows.map((row) => row.k))].filter((k) => k !== null).sort((a, b) => a - b);
  const totals = new Map();
  for (const row of rows) totals.set(row.name, (totals.get(row.name) || 0) + row.n);
  const names = [
    one.name,
    ...[...totals]
      .filter(([name]) => name !== one.name)
      .sort((a, b) => b[1] - a[1])
      .map(([name]) => name),
  ].slice(0, 5);
  const plots = models.map((model) => {
    const mine = rows.filter((row) => row.model === model);
    const n = (k) => mine.filter((row) => row.k === k).reduce((sum, row) => sum + row.n, 0);
    const share = (name, k) =>
      n(k)
        ? mine.filter((row) => row.k === k && row.name === name).reduce((sum, row) => sum + row.n, 0) / n(k)
        : null;
    const lines = names.map((name) => ({ name, values: ks.map((k) => share(name, k)) }));
    const plot = curves(
      `Predictions ${model} adaptation as k latents are kept`,
      { name: "k", values: ks, log: ks.length > 1 && ks[0] > 0 },
      lines,
      { range: [0, 1.02], height: 150 },
    );
    closers.push(plot.close);
    const plain = mine
      .filter((row) => row.k === null)
      .sort((a, b) => b.n - a.n)
      .slice(0, 3)
      .map((row) => `${row.name} ${percent(row.n / n(null))}`)
      .join(", ");
    return h(
      "div",
      null,
      h("h3", null, model),
      plot.element,
      plain ? note(`Without an SAE: ${plain}.`) : null,
    );
  });
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Predictions as k latents are kept"),
      h("span", { class: "soft" }, `share of the images of ${one.name}`),
    ),
    { data: { role: "predictions" } },
    h("div", { class: "stack" }, plots),
  );
}
