// The graph of an experiment: what is made from what, as SVG, left to right.

import { h, svg } from "../dom.js";

const NODE = { width: 168, height: 42, across: 216, down: 52, edge: 16 };

// The sign of a state: each has a shape of its own beside its colour.
export function stateSign(state, x, y) {
  const shapes = {
    committed: () => svg("circle", { class: "committed", cx: x, cy: y, r: 5 }),
    running: () => svg("path", { class: "running turn", d: `M${x + 5} ${y}a5 5 0 1 1 -5 -5` }),
    partial: () => svg("path", { class: "partial", d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z` }),
    damaged: () => svg("path", { class: "damaged", d: `M${x} ${y - 5}l6 10h-12z` }),
    absent: () => svg("circle", { class: "absent", cx: x, cy: y, r: 5 }),
  };
  return (shapes[state] || shapes.absent)();
}

// The same as HTML: sign and word.
export function stateWord(state) {
  return h(
    "span",
    { class: "key" },
    svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, stateSign(state, 7, 7)),
    state,
  );
}

// Addresses of all that a node was made from, itself included.
export function ancestorsOf(address, nodes) {
  const by = new Map(nodes.map((node) => [node.address, node]));
  const found = new Set();
  const visit = (one) => {
    if (found.has(one) || !by.has(one)) return;
    found.add(one);
    Object.values(by.get(one).inputs).forEach(visit);
  };
  visit(address);
  return found;
}

function depths(nodes) {
  const by = new Map(nodes.map((node) => [node.address, node]));
  const depth = new Map();
  const of = (address, seen) => {
    if (depth.has(address)) return depth.get(address);
    if (seen.has(address) || !by.has(address)) return -1;
    seen.add(address);
    const value = 1 + Math.max(-1, ...Object.values(by.get(address).inputs).map((input) => of(input, seen)));
    depth.set(address, value);
    return value;
  };
  nodes.forEach((node) => of(node.address, new Set()));
  return depth;
}

function arranged(nodes) {
  const depth = depths(nodes);
  const columns = [];
  for (const node of nodes) (columns[depth.get(node.address)] ||= []).push(node);
  const row = new Map();
  columns.forEach((column, i) => {
    const middle = (node) => {
      const rows = Object.values(node.inputs)
        .map((input) => row.get(input))
        .filter((one) => one !== undefined);
      return rows.length ? rows.reduce((a, b) => a + b, 0) / rows.length : 0;
    };
    if (i) column.sort((a, b) => middle(a) - middle(b));
    column.forEach((node, j) => row.set(node.address, j));
  });
  return columns;
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

// A graph of nodes {address, stage, name, state, inputs, more}; `href(node)` is where a click leads;
// `picked` is an address: what it was made from is lit, and the rest dimmed.
export function graph(label, nodes, { href, picked }) {
  const columns = arranged(nodes);
  const tallest = Math.max(...columns.map((column) => column.length), 1);
  const width = columns.length * NODE.across - (NODE.across - NODE.width) + 2 * NODE.edge;
  const height = tallest * NODE.down - (NODE.down - NODE.height) + 2 * NODE.edge;
  const at = new Map();
  columns.forEach((column, i) =>
    column.forEach((node, j) =>
      at.set(node.address, {
        x: NODE.edge + i * NODE.across,
        y: NODE.edge + j * NODE.down + ((tallest - column.length) * NODE.down) / 2,
      }),
    ),
  );
  const lit = picked ? ancestorsOf(picked, nodes) : null;
  const wires = nodes.flatMap((node) =>
    [...new Set(Object.values(node.inputs))]
      .filter((input) => at.has(input))
      .map((input) => {
        const [from, to] = [at.get(input), at.get(node.address)];
        const [x0, y0, x1, y1] = [
          from.x + NODE.width,
          from.y + NODE.height / 2,
          to.x,
          to.y + NODE.height / 2,
        ];
        const bend = Math.max(18, (x1 - x0) / 2);
        const kind = lit ? (lit.has(node.address) ? " lit" : " dim") : "";
        return svg("path", {
          class: `wire${kind}`,
          d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`,
        });
      }),
  );
  const boxes = nodes.map((node) => {
    const { x, y } = at.get(node.address);
    const kind = node.address === picked ? " at" : lit && !lit.has(node.address) ? " dim" : "";
    const words = `${node.address}: ${node.state}${node.more ? `, ${node.more}` : ""}`;
    return svg(
      "a",
      {
        href: href(node),
        class: `node${kind}`,
        "data-node": node.address,
        "aria-current": node.address === picked ? "true" : null,
      },
      svg("title", null, words),
      svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: 7 }),
      stateSign(node.state, x + 15, y + NODE.height / 2),
      svg("text", { class: "stage", x: x + 29, y: y + 16 }, node.stage),
      svg("text", { class: "name", x: x + 29, y: y + 31 }, short(node.name || node.more || "", 19)),
    );
  });
  return h(
    "div",
    { class: "graph", tabindex: "0", role: "region", "aria-label": label },
    svg(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label },
      wires,
      boxes,
    ),
  );
}

// The same nodes folded by stage, where there are too many to draw: one node per stage, which tells how
// many it stands for.
export function byStage(nodes) {
  const rank = ["damaged", "running", "partial", "absent", "committed"];
  const of = new Map(nodes.map((node) => [node.address, node.stage]));
  const stages = new Map();
  for (const node of nodes) {
    if (!stages.has(node.stage))
      stages.set(node.stage, { address: node.stage, stage: node.stage, n: 0, states: {}, inputs: {} });
    const stage = stages.get(node.stage);
    stage.n += 1;
    stage.states[node.state] = (stage.states[node.state] || 0) + 1;
    for (const input of Object.values(node.inputs)) {
      const from = of.get(input);
      if (from && from !== node.stage) stage.inputs[from] = from;
    }
  }
  return [...stages.values()].map((stage) => ({
    ...stage,
    name: `${stage.n} of it`,
    state: rank.find((state) => stage.states[state]) || "absent",
    more: Object.entries(stage.states)
      .map(([state, n]) => `${n} ${state}`)
      .join(", "),
  }));
}
