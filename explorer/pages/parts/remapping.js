// What adaptation did to the concepts of a class: counts before and after, and the latents that came and went.

import { change, go, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { CATEGORIES, themed } from "../draw/colours.js";
import { curves } from "../draw/curves.js";
import { scatter } from "../draw/scatter.js";
import { count, number, percent, whole } from "../format.js";
import { onPage } from "../keys.js";
import { choice, facts, select, table } from "./controls.js";
import { latentPair } from "./pairs.js";
import { note, panel, show } from "./states.js";
import { get } from "../source.js";
import { viewOf } from "../state.js";

const GROUPS = [["high", "high before and after"], ["high_to_low", "high to low"], ["low_to_high", "low to high"]];
const ACTIVITIES = [["kept", "Kept"], ["added", "Added"], ["removed", "Removed"]];
const COLOURS = [CATEGORIES[2], CATEGORIES[5], CATEGORIES[0]];
const MOST_PAIRS = 24;

function summaryFacts(answer) {
  const all = answer.summary.find((row) => row.classes === "all") || answer.summary[0];
  if (!all) return null;
  const between = (name, text) => (all[`${name}_ci_low`] === null || all[`${name}_ci_low`] === undefined ? null
    : `95 % interval ${text(all[`${name}_ci_low`])} to ${text(all[`${name}_ci_high`])}`);
  const three = (value) => number(value, 3);
  return facts([
    ["accuracy before", percent(all.accuracy_before), between("accuracy_before", percent)],
    ["accuracy after", percent(all.accuracy_after), between("accuracy_after", percent)],
    ["high", three(all.high_per_class), between("high_per_class", three)],
    ["high to low", three(all.high_to_low_per_class), between("high_to_low_per_class", three)],
    ["low to high", three(all.low_to_high_per_class), between("low_to_high_per_class", three)],
    ["correlation", three(all.pearson), "Pearson correlation of the counts before and after, of the latents with most tokens."],
  ], { class: "facts small" });
}

function summaryTable(rows) {
  const names = ["n_classes", "accuracy_before", "accuracy_after", "gain", "high", "high_to_low", "low_to_high", "kept_latents", "added_latents", "removed_latents"]
    .filter((name) => rows.some((row) => row[name] !== undefined));
  return table("Summary of the remapping", [{ name: "classes" }, ...names.map((name) => ({ name, number: true }))],
    rows.map((row) => [row.classes, ...names.map((name) => number(row[name], 3))]));
}

function plotOf(answer, one) {
  const plot = scatter(`Tokens of ${one.name} per latent`, { picked: (latent) => go(["v", (answer.first || answer.second).key, "latent", latent],
    { beside: answer.second ? answer.second.key : null }) });
  const points = one.points.filter((point) => point.x > 0 || point.y > 0);
  const top = Math.max(...points.map((point) => Math.max(point.x, point.y)), one.U, 1) * 1.15;
  const of = points.map((point) => 1 + GROUPS.findIndex(([name]) => name === point.group));
  const axis = (name, text) => ({ name, text, kind: "symlog", values: points.map((point) => point[name]), range: [0, top] });
  plot.set({ ids: points.map((point) => point.latent), x: axis("x", `before: tokens, ${answer.first ? answer.first.backbone : "first"}`),
    y: axis("y", `after: tokens, ${answer.second ? answer.second.backbone : "second"}`), diagonal: true,
    groups: { of, names: ["neither", ...GROUPS.map(([, text]) => text)], colours: [themed("--edge"), ...COLOURS] },
    lines: [{ axis: "x", at: one.U, text: "U" }, { axis: "y", at: one.U, text: "U" },
      { axis: "x", at: one.L, text: "L", dash: [2, 3], low: true }, { axis: "y", at: one.L, text: "L", dash: [2, 3], low: true }] });
  const n = (group) => points.filter((point) => point.group === group).length;
  const keys = [...GROUPS.map(([name, text], i) => [text, COLOURS[i], n(name)]), ["neither", themed("--edge"), n(null)]];
  const out = one.points.length - points.length;
  return panel(h("header", null, h("h2", null, "Before and after"), h("span", { class: "soft" }, `U = ${whole(one.U)}, L = ${whole(one.L)} tokens`)),
    { data: { role: "remapping" } }, plot.element,
    h("div", { class: "legend" }, keys.map(([text, colour, size]) => h("span", { class: "key" }, h("i", { css: { background: colour } }), `${text} (${whole(size)})`))),
    note(`A dot is a latent: its tokens above tau on images of ${one.name}, before and after adaptation. U is the ${answer.upper}-th and L the ${answer.lower}-th largest of both.${out ? ` ${count(out, "latent")} without any ${out === 1 ? "is" : "are"} not drawn.` : ""}`));
}

function predictionsPanel(one, closers) {
  const models = ["before", "after"].filter((model) => one.predictions.some((row) => row.model === model));
  if (!models.length) return null;
  const rows = one.predictions.filter((row) => !row.classes || row.classes === one.predictions[0].classes);
  const ks = [...new Set(rows.map((row) => row.k))].filter((k) => k !== null).sort((a, b) => a - b);
  const totals = new Map();
  for (const row of rows) totals.set(row.name, (totals.get(row.name) || 0) + row.n);
  const names = [one.name, ...[...totals].filter(([name]) => name !== one.name).sort((a, b) => b[1] - a[1]).map(([name]) => name)].slice(0, 5);
  const plots = models.map((model) => {
    const mine = rows.filter((row) => row.model === model);
    const n = (k) => mine.filter((row) => row.k === k).reduce((sum, row) => sum + row.n, 0);
    const share = (name, k) => (n(k) ? mine.filter((row) => row.k === k && row.name === name).reduce((sum, row) => sum + row.n, 0) / n(k) : null);
    const lines = names.map((name) => ({ name, values: ks.map((k) => share(name, k)) }));
    const plot = curves(`Predictions ${model} adaptation as k latents are kept`, { name: "k", values: ks, log: ks.length > 1 && ks[0] > 0 }, lines, { range: [0, 1.02], height: 150 });
    closers.push(plot.close);
    const plain = mine.filter((row) => row.k === null).sort((a, b) => b.n - a.n).slice(0, 3)
      .map((row) => `${row.name} ${percent(row.n / n(null))}`).join(", ");
    return h("div", null, h("h3", null, model), plot.element, plain ? note(`Without an SAE: ${plain}.`) : null);
  });
  return panel(h("header", null, h("h2", null, "Predictions as k latents are kept"), h("span", { class: "soft" }, `share of the images of ${one.name}`)),
    { data: { role: "predictions" } }, h("div", { class: "stack" }, plots));
}

function pairsPanel(answer, one, query, heads) {
  const kinds = [...ACTIVITIES, ...GROUPS.slice(1)];
  const of = (kind) => one.points.filter((point) => point.activity === kind || point.group === kind);
  const filled = kinds.filter(([kind]) => of(kind).length);
  if (!filled.length) return note(`No latent is active for ${one.name} on both sides, and none came or went.`);
  const kind = filled.some(([name]) => name === query.kind) ? query.kind : (filled.find(([name]) => name === "added") || filled[0])[0];
  const points = of(kind).sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x) || b.x + b.y - a.x - a.y);
  const side = (view, fallback, latent) => ({ view, latent, title: view ? view.backbone : fallback });
  return panel(h("header", null, h("h2", null, "Latents"), h("span", { class: "soft" }, count(points.length, "latent")), h("span", { class: "gap" }),
    choice("Which latents", filled.map(([name, text]) => [name, `${text} (${of(name).length})`]), kind, (value) => change({ kind: value }, true))), { data: { role: "pairs" } },
  h("div", { class: "stack" }, points.slice(0, MOST_PAIRS).map((point) => latentPair(`Latent ${point.latent}`,
    `${whole(point.x)} tokens before, ${whole(point.y)} after`, [side(heads[0], "before", point.latent), side(heads[1], "after", point.latent)]))),
  points.length > MOST_PAIRS ? note(`The ${MOST_PAIRS} that changed most of ${whole(points.length)}.`) : null);
}

export async function remappingPage(key, query) {
  const answer = await get(`remapping/${key}`);
  const closers = [];
  const body = h("div", { class: "stack" });
  const heads = await Promise.all([answer.first, answer.second].map((head) => (head ? viewOf(head.key).catch(() => null) : null)));
  const chosen = (next) => answer.classes.find((one) => String(one.class) === next.class)
    || [...answer.classes].sort((a, b) => b.high_to_low + b.low_to_high + b.added + b.removed - a.high_to_low - a.low_to_high - a.added - a.removed)[0];
  const pairs = h("div");
  let now = null;
  let data = null;

  function update(next) {
    const one = chosen(next);
    if (!one) {
      fill(body, note("The remapping has no classes."));
      return;
    }
    if (now === one.class) {
      if (data) fill(pairs, pairsPanel(answer, data, next, heads));
      return;
    }
    now = one.class;
    data = null;
    picker.querySelector("select").value = String(one.class);
    closers.splice(0).forEach((close) => close());
    fill(body);
    show(body, get(`remapping/${key}/class/${one.class}`), (found) => {
      if (now !== one.class) return null;
      data = found;
      fill(pairs, pairsPanel(answer, found, next, heads));
      return [h("div", { class: "split wide" }, plotOf(answer, found), predictionsPanel(found, closers) || note("No predictions are in the tables of this remapping.")), pairs];
    });
  }

  const picker = select("class", answer.classes.map((one) => [String(one.class), `${one.name}: ${one.high_to_low} ↓ ${one.low_to_high} ↑`]), "",
    (value) => change({ class: value, kind: null }));
  const step = (by) => {
    const place = answer.classes.findIndex((one) => one.class === now);
    const other = answer.classes[place + by];
    if (other) change({ class: other.class, kind: null });
  };
  onPage(["ArrowRight", "j"], "next class", () => step(1), { ArrowRight: "→" });
  onPage(["ArrowLeft", "k"], "previous class", () => step(-1), { ArrowLeft: "←" });
  update(query);
  const link = (view, text) => (view ? h("a", { href: makeAddress(["v", view.key, "latents"]) }, view.backbone) : text);
  return {
    title: answer.name,
    element: h("div", { class: "stack" },
      h("div", { class: "head" }, h("div", null, h("h1", null, link(answer.first, "before"), " → ", link(answer.second, "after")),
        h("p", { class: "lead" }, [answer.first ? `${answer.first.sae} on ${answer.first.dataset}` : "", answer.name].filter(Boolean).join(" · "))),
      h("span", { class: "gap" }), picker),
      summaryFacts(answer), body,
      answer.summary.length ? panel("Summary", null, summaryTable(answer.summary)) : null),
    update,
    close: () => closers.forEach((close) => close()),
  };
}
