// Home: what the store holds, how it was made, and where to look.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, moment, number, whole } from "../format.js";
import { choice, select, table } from "../parts/controls.js";
import { empty, note, pageHead, panel, prose } from "../parts/states.js";
import { trainingCurves } from "../parts/training.js";
import { home } from "../state.js";
import { isReport } from "../source.js";
import { graphPanel } from "../parts/lineage.js";
import { frontierPanel, numbersPanel } from "../parts/numbers.js";
import { viewsPanel } from "../parts/views.js";

function saeRow(sae) {
  return [
    h("a", { href: makeAddress(["sae", sae.key]) }, sae.name),
    sae.objective,
    whole(sae.n_latents),
    whole(sae.d),
    sae.dataset,
    sae.backbone,
    h("span", { class: "mono" }, sae.key.slice(0, 8)),
  ];
}

function experimentChoice(store, experiment) {
  const names = store.experiments.map((one) => [one.name, one.name]);
  const pick = (name) => change({ experiment: name, node: null, stage: null, curve: null });
  if (names.length < 2) return null;
  return names.length <= 4
    ? choice("Experiment", names, experiment.name, pick)
    : select("Experiment", names, experiment.name, pick);
}

function comparisonsPanel(comparisons) {
  if (!comparisons.length) return null;
  return panel(
    "Compare",
    null,
    h(
      "ul",
      { class: "small" },
      comparisons
        .slice(0, 8)
        .map((one) =>
          h(
            "li",
            null,
            h("a", { href: makeAddress(["compare", one.kind, one.key]) }, one.name),
            h("span", { class: "soft" }, ` ${one.first} and ${one.second}`),
          ),
        ),
    ),
    comparisons.length > 8
      ? h("p", null, h("a", { href: "#/compare" }, `All ${comparisons.length} comparisons`))
      : null,
  );
}

function saesPanel(saes) {
  if (!saes.length) return null;
  return panel(
    "SAEs",
    null,
    h(
      "div",
      { class: "low" },
      table(
        "SAEs",
        [
          { name: "name" },
          { name: "objective" },
          { name: "latents", number: true },
          { name: "channels", number: true },
          { name: "trained on" },
          { name: "backbone" },
          { name: "key" },
        ],
        saes.map(saeRow),
      ),
    ),
  );
}

// The parts of the page that depend on the address, each with the names that it depends on: only what
// changed is drawn anew.
function partsOf(store) {
  const chosen = (query) =>
    store.experiments.find((one) => one.name === query.experiment) || store.experiments[0] || null;
  const of = (query, items) => {
    const experiment = chosen(query);
    return items.filter(
      (item) =>
        !experiment ||
        !item.experiments ||
        item.experiments.includes(experiment.name) ||
        item.experiment === experiment.name,
    );
  };
  return [
    {
      names: ["experiment"],
      draw: (query) => {
        const experiment = chosen(query);
        return [
          pageHead(
            experiment ? experiment.name : "Explorer",
            [
              experiment
                ? `${count(of(query, store.views).length, "view")} of ` +
                  `${count(of(query, store.saes).length, "SAE")}, ` +
                  `${count(experiment.nodes.length, "artifact")}. `
                : "",
              store.report
                ? `A report, written ${moment(store.report.made)}.`
                : h("span", { class: "mono small" }, store.store),
            ],
            experiment ? experimentChoice(store, experiment) : null,
          ),
          (store.problems || []).map((sentence) =>
            h("p", { class: "wrong", role: "alert" }, prose(sentence)),
          ),
          store.report && store.report.left_out.length
            ? note(`${store.report.left_out.join(" ")} \`patchsae explore\` shows everything from the store.`)
            : null,
          experiment || store.views.length
            ? viewsPanel(
                of(query, store.views),
                Boolean(experiment?.nodes.some((node) => node.state === "running")),
              )
            : empty(
                store.advice ||
                  "This store holds no experiment yet. Run `patchsae demo`, and this page fills.",
              ),
        ];
      },
    },
    {
      names: ["experiment", "across", "upwards"],
      draw: (query) =>
        store.frontiers
          .filter((one) => !chosen(query) || one.experiment === chosen(query).name)
          .map((one) => frontierPanel(one, query, store)),
    },
    {
      names: ["experiment"],
      draw: (query) =>
        comparisonsPanel(
          store.comparisons.filter((one) => !chosen(query) || one.experiment === chosen(query).name),
        ),
    },
    {
      names: ["experiment", "curve"],
      seen: (query) => of(query, store.saes).map((sae) => [sae.key, sae.training]),
      draw: (query, closers) => {
        const trained = of(query, store.saes).filter((sae) => sae.training || sae.objective !== "imported");
        const sae =
          trained.find((one) => one.key === query.curve) || trained.find((one) => one.training) || trained[0];
        if (!sae) return null;
        const curve = trainingCurves(sae);
        closers.push(curve.close);
        return panel(
          h(
            "header",
            null,
            h("h2", null, "Training"),
            h("span", { class: "soft" }, sae.name),
            h("span", { class: "gap" }),
            trained.length > 1
              ? select(
                  "SAE",
                  trained.map((one) => [one.key, one.name]),
                  sae.key,
                  (value) => change({ curve: value }, true),
                )
              : null,
          ),
          { data: { role: "training" } },
          curve.element,
        );
      },
    },
    {
      names: ["experiment", "node", "stage"],
      draw: (query) => (chosen(query) ? graphPanel(chosen(query), query, store) : null),
    },
    {
      names: ["experiment"],
      draw: (query) => [chosen(query) ? numbersPanel(chosen(query)) : null, saesPanel(of(query, store.saes))],
    },
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
  const places = partsOf(store).map(() => ({
    element: h("div", { class: "stack" }),
    closers: [],
    drawn: null,
  }));
  element.append(...places.map((place) => place.element));

  // Draws the parts that `state` differs in; `state` is what each part was drawn from.
  function redraw() {
    partsOf(store).forEach((part, i) => {
      const place = places[i];
      const state = JSON.stringify([
        part.names.map((name) => now[name] || ""),
        part.seen ? part.seen(now) : stamp,
      ]);
      if (state === place.drawn) return;
      place.drawn = state;
      place.closers.splice(0).forEach((close) => close());
      fill(place.element, part.draw(now, place.closers));
      showPicked(place.element);
      place.element.hidden = !place.element.hasChildNodes();
    });
  }

  const moving = () =>
    store.experiments.some((one) =>
      one.nodes.some((node) => ["running", "partial", "absent"].includes(node.state)),
    );
  const watch = () => {
    if (isReport()) return;
    timer = setTimeout(
      async () => {
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
      },
      moving() ? 3000 : 15000,
    );
  };
  redraw();
  watch();
  return {
    element,
    title: "Home",
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
