// How an experiment was made: its graph, and what is known of one of its artifacts.

import { makeAddress } from "../address.js";
import { h } from "../dom.js";
import { ancestorsOf, byStage, graph, stateWord } from "../draw/dag.js";
import { count, moment, number, words } from "../format.js";
import { pairs, table } from "./controls.js";
import { note, panel } from "./states.js";

const MANY = 48;
function nodePanel(node, experiment, store) {
  const made = [...ancestorsOf(node.address, experiment.nodes)].filter((address) => address !== node.address);
  const inputs = Object.entries(node.inputs);
  const summary = Object.entries(node.summary || {}).filter(
    ([, value]) => typeof value !== "object" || value === null,
  );
  const link = (address) =>
    h("a", { href: makeAddress([], { experiment: experiment.name, node: address }) }, address);
  const view = store.views.find((one) => one.key === node.key);
  const sae = store.saes.find((one) => one.key === node.key);
  const comparison = store.comparisons.find((one) => one.key === node.key);
  return h(
    "div",
    { class: "stack", data: { role: "node" } },
    h(
      "div",
      null,
      h("h3", { class: "mono" }, node.address),
      h(
        "div",
        { class: "row small" },
        stateWord(node.state),
        node.made ? h("span", { class: "soft" }, moment(node.made)) : null,
      ),
    ),
    pairs([
      ["key", h("span", { class: "mono" }, node.key || "–")],
      ...Object.entries(node.names || {})
        .filter(([, value]) => value)
        .map(([name, value]) => [words(name), value]),
    ]),
    h(
      "div",
      { class: "row" },
      view ? h("a", { class: "button", href: makeAddress(["v", view.key, "latents"]) }, "Its latents") : null,
      sae ? h("a", { class: "button", href: makeAddress(["sae", sae.key]) }, "This SAE") : null,
      comparison
        ? h(
            "a",
            { class: "button", href: makeAddress(["compare", comparison.kind, comparison.key]) },
            "Compare",
          )
        : null,
    ),
    summary.length
      ? h(
          "div",
          null,
          h("h3", null, "Summary"),
          pairs(summary.map(([name, value]) => [words(name), number(value)])),
        )
      : null,
    h(
      "div",
      null,
      h("h3", null, "Made from"),
      inputs.length
        ? h(
            "ul",
            { class: "small" },
            inputs.map(([role, address]) =>
              h("li", null, h("span", { class: "soft" }, `${role}: `), link(address)),
            ),
          )
        : note("Nothing: it begins here."),
    ),
    made.length > inputs.length
      ? h(
          "details",
          { class: "small" },
          h("summary", null, `All ${made.length} that it rests on`),
          h(
            "ul",
            null,
            made.map((address) => h("li", null, link(address))),
          ),
        )
      : null,
  );
}

function nodeList(nodes, experiment) {
  return table(
    "Artifacts",
    [{ name: "artifact" }, { name: "state" }, { name: "key" }, { name: "made" }],
    nodes.map((node) => [
      h(
        "a",
        { class: "mono", href: makeAddress([], { experiment: experiment.name, node: node.address }) },
        node.address,
      ),
      stateWord(node.state),
      h("span", { class: "mono" }, node.key || "–"),
      moment(node.made),
    ]),
  );
}

export function graphPanel(experiment, query, store) {
  const { nodes } = experiment;
  const picked = nodes.find((node) => node.address === query.node) || null;
  const to = (values) => makeAddress([], { experiment: experiment.name, ...values });
  const many = nodes.length > MANY;
  const stage = many ? query.stage || (picked ? picked.stage : "") : "";
  let drawn = graph(`How ${experiment.name} was made`, nodes, {
    href: (node) => to({ node: node.address }),
    picked: picked && picked.address,
  });
  if (many && picked) {
    const line = ancestorsOf(picked.address, nodes);
    drawn = graph(
      `What ${picked.address} was made from`,
      nodes.filter((node) => line.has(node.address)),
      { href: (node) => to({ node: node.address }), picked: picked.address },
    );
  } else if (many) {
    drawn = graph(`Stages of ${experiment.name}`, byStage(nodes), {
      href: (node) => to({ stage: node.address }),
      picked: null,
    });
  }
  const states = [...new Set(nodes.map((node) => node.state))];
  const counts = states.map((state) =>
    h("span", { class: "key" }, stateWord(state), ` ${nodes.filter((node) => node.state === state).length}`),
  );
  const side = picked
    ? nodePanel(picked, experiment, store)
    : note(
        many
          ? "Each box stands for all artifacts of a stage. Choose one to see them."
          : "Choose a box to see its numbers and what it was made from.",
      );
  return panel(
    h(
      "header",
      null,
      h("h2", null, "How it was made"),
      h("span", { class: "soft" }, count(nodes.length, "artifact")),
      h("span", { class: "gap" }),
      picked || stage ? h("a", { class: "button", href: to({}) }, "Show all") : null,
    ),
    null,
    h(
      "div",
      { class: picked ? "split" : "stack" },
      h(
        "div",
        { class: "stack" },
        drawn,
        h("div", { class: "legend" }, counts),
        many && stage
          ? h(
              "div",
              { class: "low" },
              nodeList(
                nodes.filter((node) => node.stage === stage),
                experiment,
              ),
            )
          : null,
      ),
      side,
    ),
  );
}
