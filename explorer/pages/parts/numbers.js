// The summary numbers of an experiment: its frontier of SAEs, and a table for each kind of evaluation.

import { change, makeAddress } from "../address.js";
import { h } from "../dom.js";
import { frontier } from "../draw/frontier.js";
import { count, number, words } from "../format.js";
import { select, table } from "./controls.js";
import { panel } from "./states.js";

// Of a table's many numbers, those that are shown here.
const TOLD = {
  frontier: ["l0", "fvu", "zero_shot_kept_mean", "dead_fraction"],
  reconstruction: [
    "l0",
    "fvu",
    "explained_variance",
    "cosine",
    "dead_fraction",
    "accuracy_original",
    "accuracy_reconstruction",
    "zero_shot_kept_mean",
  ],
  masking: [
    "zero_shot_accuracy",
    "accuracy_all",
    "on_class_k10",
    "off_class_k10",
    "on_dataset_k10",
    "off_dataset_k10",
    "on_random_k10",
    "off_random_k10",
  ],
};

const ACROSS = ["l0", "l1_norm", "n_latents", "dead_fraction"];
const UPWARDS = [
  "fvu",
  "zero_shot_kept_mean",
  "zero_shot_kept_zero",
  "kept",
  "explained_variance",
  "cosine",
  "contrastive_score_mean",
  "set_kept_mean",
  "dead_fraction",
];

export function frontierPanel(one, query, store) {
  const has = (name) => one.rows.some((row) => row[name] !== null && row[name] !== undefined);
  const across = ACROSS.filter(has);
  const upwards = UPWARDS.filter(has);
  if (!across.length || !upwards.length) return null;
  const x = across.includes(query.across) ? query.across : across[0];
  const y = upwards.includes(query.upwards) ? query.upwards : upwards[0];
  const rows = one.rows.map((row) => {
    const view = store.views.find((item) => item.sae_key === row.sae_key);
    return {
      ...row,
      href: view ? makeAddress(["v", view.key, "latents"]) : makeAddress(["sae", row.sae_key]),
    };
  });
  const columns = ["sae", ...new Set([x, y, ...TOLD.frontier])].filter((name) => name === "sae" || has(name));
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Sparsity against what is lost"),
      h("span", { class: "soft" }, one.evaluation),
      h("span", { class: "gap" }),
      select(
        "across",
        across.map((name) => [name, words(name)]),
        x,
        (value) => change({ across: value }, true),
      ),
      select(
        "upwards",
        upwards.map((name) => [name, words(name)]),
        y,
        (value) => change({ upwards: value }, true),
      ),
    ),
    null,
    h(
      "div",
      { class: "halves" },
      frontier(rows, x, y, one.picked),
      table(
        "SAEs on the frontier plot",
        columns.map((name) => ({ name, text: name === "sae" ? "SAE" : null, number: name !== "sae" })),
        rows.map((row) =>
          columns.map((name) =>
            name === "sae"
              ? h("a", { href: row.href }, row.sae, row.sae_key === one.picked ? " (picked)" : "")
              : number(row[name]),
          ),
        ),
      ),
    ),
  );
}

const MOST_NUMBERS = 8;
// The summary numbers of all evaluations: a table for each kind.
export function numbersPanel(experiment) {
  const stages = new Map();
  for (const node of experiment.nodes) {
    if (!node.names.evaluation || node.state !== "committed") continue;
    if (!stages.has(node.stage)) stages.set(node.stage, []);
    stages.get(node.stage).push(node);
  }
  if (!stages.size) return null;
  const tables = [...stages].map(([stage, nodes]) => {
    const names = new Set(
      nodes.flatMap((node) =>
        Object.keys(node.summary).filter((name) => typeof node.summary[name] === "number"),
      ),
    );
    const wanted = (TOLD[stage] || []).filter((name) => names.has(name));
    const columns = (wanted.length > 3 ? wanted : [...names]).slice(0, MOST_NUMBERS);
    const about = ["sae", "dataset", "backbone"].filter(
      (name) => new Set(nodes.map((node) => node.names[name])).size > 1,
    );
    return h(
      "details",
      { open: nodes.length <= 6 },
      h(
        "summary",
        null,
        h("strong", null, words(stage)),
        h("span", { class: "soft small" }, ` ${count(nodes.length, "evaluation")}`),
      ),
      h(
        "div",
        { class: "low" },
        table(
          `Summary numbers of ${words(stage)}`,
          [
            { name: "evaluation" },
            ...about.map((name) => ({ name })),
            ...columns.map((name) => ({ name, number: true })),
          ],
          nodes.map((node) => [
            h("a", { href: makeAddress([], { experiment: experiment.name, node: node.address }) }, node.name),
            ...about.map((name) => node.names[name] || "–"),
            ...columns.map((name) => number(node.summary[name])),
          ]),
        ),
      ),
    );
  });
  return panel("Summary numbers", null, h("div", { class: "stack" }, tables));
}
