// Training curves of an SAE, which grow while it is trained.

import { fill, h } from "../dom.js";
import { curves } from "../draw/curves.js";
import { get, isReport } from "../source.js";
import { number, whole } from "../format.js";
import { waiting, wrong } from "./states.js";

const PLOTS = [
  ["Loss", ["loss", "reconstruction", "penalty", "auxiliary"], true],
  ["Explained variance", ["explained_variance"], false],
  ["L0: latents above 0 per token", ["l0"], false],
  ["Dead latents", ["n_dead"], false],
];

function linesOf(names, columns, log) {
  const varies = (values) => values.some((value) => value !== null && value !== 0);
  const positive = (value) => (log && !(value > 0) ? null : value);
  return names
    .filter((name) => columns[name] && varies(columns[name]))
    .map((name) => ({ name, values: columns[name].map(positive), points: false }));
}

// {element, close}. Asks every two seconds while the SAE is trained.
export function trainingCurves(sae) {
  const state = h("p", { class: "note", "aria-live": "polite" });
  const plots = h("div", { class: "halves" });
  const element = h("div", { class: "stack" }, state, plots);
  const made = new Map();
  let timer = 0;
  let closed = false;

  function draw(answer) {
    const x = { name: "step", values: answer.columns.step };
    const last = x.values.length - 1;
    state.textContent =
      last < 0
        ? "No step is logged yet."
        : `${answer.running ? "Training now: " : ""}${whole(x.values[last])} steps, loss ` +
          `${number((answer.columns.loss || [])[last])}.`;
    for (const [title, names, log] of PLOTS) {
      const lines = linesOf(names, answer.columns, log);
      if (!lines.length) continue;
      if (!made.has(title)) {
        const plot = curves(title, x, lines, { log, height: 190 });
        made.set(title, plot);
        plots.append(h("div", null, h("h3", null, title), plot.element));
      } else made.get(title).set(x, lines);
    }
  }

  async function ask() {
    try {
      const answer = await get(`training/${sae.key}`, null, true);
      if (closed) return;
      if (!made.size) fill(plots);
      draw(answer);
      if (answer.running && !isReport()) timer = setTimeout(ask, 2000);
    } catch (error) {
      if (!closed) fill(plots, error.status === 404 ? null : wrong(error));
      if (!closed && error.status === 404) state.textContent = error.message;
    }
  }

  fill(plots, waiting("Reading the training curve"));
  ask();
  return {
    element,
    close() {
      closed = true;
      clearTimeout(timer);
      made.forEach((plot) => plot.close());
    },
  };
}
