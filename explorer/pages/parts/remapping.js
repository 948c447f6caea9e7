// What adaptation did to the concepts of a class: counts before and after, and the latents that came and
// went.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, number, percent, whole } from "../format.js";
import { onPage } from "../keys.js";
import { choice, facts, select, table } from "./controls.js";
import { latentPair } from "./pairs.js";
import { note, pageHead, panel, show } from "./states.js";
import { get } from "../source.js";
import { viewOf } from "../state.js";
import { GROUPS, plotOf, predictionsPanel } from "./before_after.js";

const ACTIVITIES = [
  ["kept", "Kept"],
  ["added", "Added"],
  ["removed", "Removed"],
];

const MOST_PAIRS = 24;

function summaryFacts(answer) {
  const all = answer.summary.find((row) => row.classes === "all") || answer.summary[0];
  if (!all) return null;
  const between = (name, text) =>
    all[`${name}_ci_low`] === null || all[`${name}_ci_low`] === undefined
      ? null
      : `95 % interval ${text(all[`${name}_ci_low`])} to ${text(all[`${name}_ci_high`])}`;
  const three = (value) => number(value, 3);
  return facts(
    [
      ["accuracy before", percent(all.accuracy_before), between("accuracy_before", percent)],
      ["accuracy after", percent(all.accuracy_after), between("accuracy_after", percent)],
      ["high", three(all.high_per_class), between("high_per_class", three)],
      ["high to low", three(all.high_to_low_per_class), between("high_to_low_per_class", three)],
      ["low to high", three(all.low_to_high_per_class), between("low_to_high_per_class", three)],
      [
        "correlation",
        three(all.pearson),
        "Pearson correlation of the counts before and after, of the latents with most tokens.",
      ],
    ],
    { class: "facts small" },
  );
}

function summaryTable(rows) {
  const names = [
    "n_classes",
    "accuracy_before",
    "accuracy_after",
    "gain",
    "high",
    "high_to_low",
    "low_to_high",
    "kept_latents",
    "added_latents",
    "removed_latents",
  ].filter((name) => rows.some((row) => row[name] !== undefined));
  return table(
    "Summary of the remapping",
    [{ name: "classes" }, ...names.map((name) => ({ name, number: true }))],
    rows.map((row) => [row.classes, ...names.map((name) => number(row[name], 3))]),
  );
}

function pairsPanel(answer, one, query, heads) {
  const kinds = [...ACTIVITIES, ...GROUPS.slice(1)];
  const of = (kind) => one.points.filter((point) => point.activity === kind || point.group === kind);
  const filled = kinds.filter(([kind]) => of(kind).length);
  if (!filled.length)
    return note(`No latent is active for ${one.name} on both sides, and none came or went.`);
  const kind = filled.some(([name]) => name === query.kind)
    ? query.kind
    : (filled.find(([name]) => name === "added") || filled[0])[0];
  const points = of(kind).sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x) || b.x + b.y - a.x - a.y);
  const side = (view, fallback, latent) => ({ view, latent, title: view ? view.backbone : fallback });
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Latents"),
      h("span", { class: "soft" }, count(points.length, "latent")),
      h("span", { class: "gap" }),
      choice(
        "Which latents",
        filled.map(([name, text]) => [name, `${text} (${of(name).length})`]),
        kind,
        (value) => change({ kind: value }, true),
      ),
    ),
    { data: { role: "pairs" } },
    h(
      "div",
      { class: "stack" },
      points
        .slice(0, MOST_PAIRS)
        .map((point) =>
          latentPair(`Latent ${point.latent}`, `${whole(point.x)} tokens before, ${whole(point.y)} after`, [
            side(heads[0], "before", point.latent),
            side(heads[1], "after", point.latent),
          ]),
        ),
    ),
    points.length > MOST_PAIRS
      ? note(`The ${MOST_PAIRS} that changed most of ${whole(points.length)}.`)
      : null,
  );
}

export async function remappingPage(key, query) {
  const answer = await get(`remapping/${key}`);
  const closers = [];
  const body = h("div", { class: "stack" });
  const heads = await Promise.all(
    [answer.first, answer.second].map((head) => (head ? viewOf(head.key).catch(() => null) : null)),
  );
  const chosen = (next) =>
    answer.classes.find((one) => String(one.class) === next.class) ||
    [...answer.classes].sort(
      (a, b) =>
        b.high_to_low +
        b.low_to_high +
        b.added +
        b.removed -
        a.high_to_low -
        a.low_to_high -
        a.added -
        a.removed,
    )[0];
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
      return [
        h(
          "div",
          { class: "split wide" },
          plotOf(answer, found),
          predictionsPanel(found, closers) || note("No predictions are in the tables of this remapping."),
        ),
        pairs,
      ];
    });
  }

  const picker = select(
    "class",
    answer.classes.map((one) => [
      String(one.class),
      `${one.name}: ${one.high_to_low} ↓ ${one.low_to_high} ↑`,
    ]),
    "",
    (value) => change({ class: value, kind: null }),
  );
  const step = (by) => {
    const place = answer.classes.findIndex((one) => one.class === now);
    const other = answer.classes[place + by];
    if (other) change({ class: other.class, kind: null });
  };
  onPage(["ArrowRight", "j"], "next class", () => step(1), { ArrowRight: "→" });
  onPage(["ArrowLeft", "k"], "previous class", () => step(-1), { ArrowLeft: "←" });
  update(query);
  const link = (view, text) =>
    view ? h("a", { href: makeAddress(["v", view.key, "latents"]) }, view.backbone) : text;
  return {
    title: answer.name,
    element: h(
      "div",
      { class: "stack" },
      pageHead(
        [link(answer.first, "before"), " → ", link(answer.second, "after")],
        [answer.first ? `${answer.first.sae} on ${answer.first.dataset}` : "", answer.name]
          .filter(Boolean)
          .join(" · "),
        picker,
      ),
      summaryFacts(answer),
      body,
      answer.summary.length ? panel("Summary", null, summaryTable(answer.summary)) : null,
    ),
    update,
    close: () => closers.forEach((close) => close()),
  };
}
