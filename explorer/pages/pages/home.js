// Home: what the store holds, how it was made, and where to look.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { ancestorsOf, byStage, graph, stateWord } from "../draw/dag.js";
import { frontier } from "../draw/frontier.js";
import { count, moment, number, whole, words } from "../format.js";
import { choice, pairs, select, table } from "../parts/controls.js";
import { empty, note, panel, prose } from "../parts/states.js";
import { trainingCurves } from "../parts/training.js";
import { home } from "../state.js";
import { isReport } from "../source.js";

const MANY = 48;
const MOST_VIEWS = 12;

function viewCard(view) {
  const base = ["v", view.key];
  return h("li", { class: "card", data: { view: view.key } },
    h("h3", null, h("a", { href: makeAddress([...base, "latents"]) }, view.sae)),
    h("p", { class: "small" }, `on ${view.dataset}${view.split ? `, ${view.split}` : ""}, seen by ${view.backbone}`),
    h("p", { class: "soft small" }, `${whole(view.n_latents)} latents, ${whole(view.n_images)} images, ${whole(view.n_classes)} classes`),
    h("div", { class: "row" },
      h("a", { class: "button", href: makeAddress([...base, "latents"]) }, "Latents"),
      view.n_classes ? h("a", { class: "button", href: makeAddress([...base, "classes"]) }, "Classes") : null,
      h("a", { class: "button", href: makeAddress([...base, "images"]) }, "Images")));
}

function viewTable(views) {
  return table("Views", [{ name: "sae", text: "SAE" }, { name: "dataset" }, { name: "split" }, { name: "backbone" },
    { name: "latents", number: true }, { name: "images", number: true }],
  views.map((view) => [h("a", { href: makeAddress(["v", view.key, "latents"]) }, view.sae), view.dataset, view.split, view.backbone,
    whole(view.n_latents), whole(view.n_images)]));
}

function viewsPanel(views) {
  const body = h("div");
  const draw = (text) => {
    const like = text.toLowerCase();
    const left = views.filter((view) => `${view.sae} ${view.dataset} ${view.split} ${view.backbone}`.toLowerCase().includes(like));
    fill(body, views.length <= MOST_VIEWS ? h("ul", { class: "cards" }, left.map(viewCard)) : h("div", { class: "low" }, viewTable(left)));
  };
  draw("");
  return panel(h("header", null, h("h2", null, "Look at latents"),
    h("span", { class: "soft" }, count(views.length, "view")), h("span", { class: "gap" }),
    views.length > MOST_VIEWS ? h("input", { type: "search", placeholder: "Find a view", "aria-label": "Find a view",
      oninput: (event) => draw(event.target.value) }) : null), null,
  views.length ? body : empty("No statistics are there yet, so there are no latents to look at.",
    "Add an evaluation of kind `statistics` to the experiment, or run `patchsae demo`."));
}

function nodePanel(node, experiment, store) {
  const made = [...ancestorsOf(node.address, experiment.nodes)].filter((address) => address !== node.address);
  const inputs = Object.entries(node.inputs);
  const summary = Object.entries(node.summary || {}).filter(([, value]) => typeof value !== "object" || value === null);
  const link = (address) => h("a", { href: makeAddress([], { experiment: experiment.name, node: address }) }, address);
  const view = store.views.find((one) => one.key === node.key);
  const sae = store.saes.find((one) => one.key === node.key);
  const comparison = store.comparisons.find((one) => one.key === node.key);
  return h("div", { class: "stack", data: { role: "node" } },
    h("div", null, h("h3", { class: "mono" }, node.address), h("div", { class: "row small" }, stateWord(node.state),
      node.made ? h("span", { class: "soft" }, moment(node.made)) : null)),
    pairs([["key", h("span", { class: "mono" }, node.key || "–")],
      ...Object.entries(node.names || {}).filter(([, value]) => value).map(([name, value]) => [words(name), value])]),
    h("div", { class: "row" },
      view ? h("a", { class: "button", href: makeAddress(["v", view.key, "latents"]) }, "Its latents") : null,
      sae ? h("a", { class: "button", href: makeAddress(["sae", sae.key]) }, "This SAE") : null,
      comparison ? h("a", { class: "button", href: makeAddress(["compare", comparison.kind, comparison.key]) }, "Compare") : null),
    summary.length ? h("div", null, h("h3", null, "Summary"), pairs(summary.map(([name, value]) => [words(name), number(value)]))) : null,
    h("div", null, h("h3", null, "Made from"), inputs.length
      ? h("ul", { class: "small" }, inputs.map(([role, address]) => h("li", null, h("span", { class: "soft" }, `${role}: `), link(address))))
      : note("Nothing: it begins here.")),
    made.length > inputs.length ? h("details", { class: "small" }, h("summary", null, `All ${made.length} that it rests on`),
      h("ul", null, made.map((address) => h("li", null, link(address))))) : null);
}

function nodeList(nodes, experiment) {
  return table("Artifacts", [{ name: "artifact" }, { name: "state" }, { name: "key" }, { name: "made" }], nodes.map((node) => [
    h("a", { class: "mono", href: makeAddress([], { experiment: experiment.name, node: node.address }) }, node.address),
    stateWord(node.state), h("span", { class: "mono" }, node.key || "–"), moment(node.made)]));
}

function graphPanel(experiment, query, store) {
  const { nodes } = experiment;
  const picked = nodes.find((node) => node.address === query.node) || null;
  const to = (values) => makeAddress([], { experiment: experiment.name, ...values });
  const many = nodes.length > MANY;
  const stage = many ? query.stage || (picked ? picked.stage : "") : "";
  let drawn = graph(`How ${experiment.name} was made`, nodes, { href: (node) => to({ node: node.address }), picked: picked && picked.address });
  if (many && picked) {
    const line = ancestorsOf(picked.address, nodes);
    drawn = graph(`What ${picked.address} was made from`, nodes.filter((node) => line.has(node.address)),
      { href: (node) => to({ node: node.address }), picked: picked.address });
  } else if (many) {
    drawn = graph(`Stages of ${experiment.name}`, byStage(nodes), { href: (node) => to({ stage: node.address }), picked: null });
  }
  const states = [...new Set(nodes.map((node) => node.state))];
  const counts = states.map((state) => h("span", { class: "key" }, stateWord(state), ` ${nodes.filter((node) => node.state === state).length}`));
  const side = picked ? nodePanel(picked, experiment, store)
    : note(many ? "Each box stands for all artifacts of a stage. Choose one to see them." : "Choose a box to see its numbers and what it was made from.");
  return panel(h("header", null, h("h2", null, "How it was made"), h("span", { class: "soft" }, count(nodes.length, "artifact")),
    h("span", { class: "gap" }), picked || stage ? h("a", { class: "button", href: to({}) }, "Show all") : null), null,
  h("div", { class: picked ? "split" : "stack" }, h("div", { class: "stack" }, drawn, h("div", { class: "legend" }, counts),
    many && stage ? h("div", { class: "low" }, nodeList(nodes.filter((node) => node.stage === stage), experiment)) : null), side));
}

// Of a table's many numbers, those that are shown here.
const TOLD = {
  frontier: ["l0", "fvu", "zero_shot_kept_mean", "dead_fraction"],
  reconstruction: ["l0", "fvu", "explained_variance", "cosine", "dead_fraction", "accuracy_original", "accuracy_reconstruction", "zero_shot_kept_mean"],
  masking: ["zero_shot_accuracy", "accuracy_all", "on_class_k10", "off_class_k10", "on_dataset_k10", "off_dataset_k10", "on_random_k10", "off_random_k10"],
};
const ACROSS = ["l0", "l1_norm", "n_latents", "dead_fraction"];
const UPWARDS = ["fvu", "zero_shot_kept_mean", "zero_shot_kept_zero", "kept", "explained_variance", "cosine", "contrastive_score_mean",
  "set_kept_mean", "dead_fraction"];

function frontierPanel(one, query, store) {
  const has = (name) => one.rows.some((row) => row[name] !== null && row[name] !== undefined);
  const across = ACROSS.filter(has);
  const upwards = UPWARDS.filter(has);
  if (!across.length || !upwards.length) return null;
  const x = across.includes(query.across) ? query.across : across[0];
  const y = upwards.includes(query.upwards) ? query.upwards : upwards[0];
  const rows = one.rows.map((row) => {
    const view = store.views.find((item) => item.sae_key === row.sae_key);
    return { ...row, href: view ? makeAddress(["v", view.key, "latents"]) : makeAddress(["sae", row.sae_key]) };
  });
  const columns = ["sae", ...new Set([x, y, ...TOLD.frontier])].filter((name) => name === "sae" || has(name));
  return panel(h("header", null, h("h2", null, "Sparsity against what is lost"), h("span", { class: "soft" }, one.evaluation),
    h("span", { class: "gap" }),
    select("across", across.map((name) => [name, words(name)]), x, (value) => change({ across: value }, true)),
    select("upwards", upwards.map((name) => [name, words(name)]), y, (value) => change({ upwards: value }, true))), null,
  h("div", { class: "halves" }, frontier(rows, x, y, one.picked), table("SAEs on the frontier plot",
    columns.map((name) => ({ name, text: name === "sae" ? "SAE" : null, number: name !== "sae" })),
    rows.map((row) => columns.map((name) => (name === "sae"
      ? h("a", { href: row.href }, row.sae, row.sae_key === one.picked ? " (picked)" : "") : number(row[name])))))));
}

const MOST_NUMBERS = 8;

// The summary numbers of all evaluations: a table for each kind.
function numbersPanel(experiment) {
  const stages = new Map();
  for (const node of experiment.nodes) {
    if (!node.names.evaluation || node.state !== "committed") continue;
    if (!stages.has(node.stage)) stages.set(node.stage, []);
    stages.get(node.stage).push(node);
  }
  if (!stages.size) return null;
  const tables = [...stages].map(([stage, nodes]) => {
    const names = new Set(nodes.flatMap((node) => Object.keys(node.summary).filter((name) => typeof node.summary[name] === "number")));
    const wanted = (TOLD[stage] || []).filter((name) => names.has(name));
    const columns = (wanted.length > 3 ? wanted : [...names]).slice(0, MOST_NUMBERS);
    const about = ["sae", "dataset", "backbone"].filter((name) => new Set(nodes.map((node) => node.names[name])).size > 1);
    return h("details", { open: nodes.length <= 6 }, h("summary", null, h("strong", null, words(stage)), h("span", { class: "soft small" }, ` ${count(nodes.length, "evaluation")}`)),
      h("div", { class: "low" }, table(`Summary numbers of ${words(stage)}`, [{ name: "evaluation" }, ...about.map((name) => ({ name })),
        ...columns.map((name) => ({ name, number: true }))],
      nodes.map((node) => [h("a", { href: makeAddress([], { experiment: experiment.name, node: node.address }) }, node.name),
        ...about.map((name) => node.names[name] || "–"), ...columns.map((name) => number(node.summary[name]))]))));
  });
  return panel("Summary numbers", null, h("div", { class: "stack" }, tables));
}

function saeRow(sae) {
  return [h("a", { href: makeAddress(["sae", sae.key]) }, sae.name), sae.objective, whole(sae.n_latents), whole(sae.d), sae.dataset, sae.backbone,
    h("span", { class: "mono" }, sae.key.slice(0, 8))];
}

function experimentChoice(store, experiment) {
  const names = store.experiments.map((one) => [one.name, one.name]);
  const pick = (name) => change({ experiment: name, node: null, stage: null, curve: null });
  if (names.length < 2) return null;
  return names.length <= 4 ? choice("Experiment", names, experiment.name, pick) : select("Experiment", names, experiment.name, pick);
}

function comparisonsPanel(comparisons) {
  if (!comparisons.length) return null;
  return panel("Compare", null, h("ul", { class: "small" }, comparisons.slice(0, 8).map((one) => h("li", null,
    h("a", { href: makeAddress(["compare", one.kind, one.key]) }, one.name), h("span", { class: "soft" }, ` ${one.first} and ${one.second}`)))),
  comparisons.length > 8 ? h("p", null, h("a", { href: "#/compare" }, `All ${comparisons.length} comparisons`)) : null);
}

function saesPanel(saes) {
  if (!saes.length) return null;
  return panel("SAEs", null, h("div", { class: "low" }, table("SAEs", [{ name: "name" }, { name: "objective" }, { name: "latents", number: true },
    { name: "channels", number: true }, { name: "trained on" }, { name: "backbone" }, { name: "key" }], saes.map(saeRow))));
}

// The parts of the page that depend on the address, each with the names that it depends on: only what changed is drawn anew.
function partsOf(store) {
  const chosen = (query) => store.experiments.find((one) => one.name === query.experiment) || store.experiments[0] || null;
  const of = (query, items) => {
    const experiment = chosen(query);
    return items.filter((item) => !experiment || !item.experiments || item.experiments.includes(experiment.name) || item.experiment === experiment.name);
  };
  return [
    { names: ["experiment"], draw: (query) => {
      const experiment = chosen(query);
      return [h("div", { class: "head" }, h("div", null, h("h1", null, experiment ? experiment.name : "Explorer"), h("p", { class: "lead" },
        experiment ? `${count(of(query, store.views).length, "view")} of ${count(of(query, store.saes).length, "SAE")}, ${count(experiment.nodes.length, "artifact")}. ` : "",
        store.report ? `A report, written ${moment(store.report.made)}.` : h("span", { class: "mono small" }, store.store))), h("span", { class: "gap" }), experiment ? experimentChoice(store, experiment) : null),
      (store.problems || []).map((sentence) => h("p", { class: "wrong", role: "alert" }, prose(sentence))),
      store.report && store.report.left_out.length ? note(`${store.report.left_out.join(" ")} \`patchsae explore\` shows everything from the store.`) : null,
      experiment || store.views.length ? viewsPanel(of(query, store.views))
        : empty(store.advice || "This store holds no experiment yet. Run `patchsae demo`, and this page fills.")];
    } },
    { names: ["experiment", "across", "upwards"], draw: (query) => store.frontiers
      .filter((one) => !chosen(query) || one.experiment === chosen(query).name).map((one) => frontierPanel(one, query, store)) },
    { names: ["experiment"], draw: (query) => comparisonsPanel(store.comparisons.filter((one) => !chosen(query) || one.experiment === chosen(query).name)) },
    { names: ["experiment", "curve"], seen: (query) => of(query, store.saes).map((sae) => [sae.key, sae.training]), draw: (query, closers) => {
      const trained = of(query, store.saes).filter((sae) => sae.training || sae.objective !== "imported");
      const sae = trained.find((one) => one.key === query.curve) || trained.find((one) => one.training) || trained[0];
      if (!sae) return null;
      const curve = trainingCurves(sae);
      closers.push(curve.close);
      return panel(h("header", null, h("h2", null, "Training"), h("span", { class: "soft" }, sae.name), h("span", { class: "gap" }),
        trained.length > 1 ? select("SAE", trained.map((one) => [one.key, one.name]), sae.key, (value) => change({ curve: value }, true)) : null),
      { data: { role: "training" } }, curve.element);
    } },
    { names: ["experiment", "node", "stage"], draw: (query) => (chosen(query) ? graphPanel(chosen(query), query, store) : null) },
    { names: ["experiment"], draw: (query) => [chosen(query) ? numbersPanel(chosen(query)) : null, saesPanel(of(query, store.saes))] },
  ];
}

function showPicked(element) {
  const graphed = element.querySelector(".graph");
  const box = element.querySelector(".graph .at rect");
  if (box) graphed.scrollLeft = Number(box.getAttribute("x")) - graphed.clientWidth / 2;
}

// The page. It asks again while something of the store is being made.
export async function homePage(_, query) {
  let now = query;
  let store = await home(true);
  let stamp = 0;
  let timer = 0;
  const element = h("div", { class: "stack" });
  const places = partsOf(store).map(() => ({ element: h("div", { class: "stack" }), closers: [], drawn: null }));
  element.append(...places.map((place) => place.element));

  // Draws the parts that `state` differs in; `state` is what each part was drawn from.
  function redraw() {
    partsOf(store).forEach((part, i) => {
      const place = places[i];
      const state = JSON.stringify([part.names.map((name) => now[name] || ""), part.seen ? part.seen(now) : stamp]);
      if (state === place.drawn) return;
      place.drawn = state;
      place.closers.splice(0).forEach((close) => close());
      fill(place.element, part.draw(now, place.closers));
      showPicked(place.element);
      place.element.hidden = !place.element.hasChildNodes();
    });
  }

  const moving = () => store.experiments.some((one) => one.nodes.some((node) => ["running", "partial", "absent"].includes(node.state)));
  const watch = () => {
    if (isReport()) return;
    timer = setTimeout(async () => {
      try {
        const next = document.hidden ? store : await home(true);
        const changed = JSON.stringify(next) !== JSON.stringify(store);
        store = next;
        stamp += Number(changed);
        if (changed) redraw();
      } catch {
        // The next turn asks again; what is shown stays true of the moment it was asked.
      }
      watch();
    }, moving() ? 3000 : 15000);
  };
  redraw();
  watch();
  return {
    element, title: "Home",
    update(next) {
      now = next;
      redraw();
    },
    close() {
      clearTimeout(timer);
      places.forEach((place) => place.closers.forEach((close) => close()));
    },
  };
}
