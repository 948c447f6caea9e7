// The scatter of all latents: any two columns, a third as colour, and a rectangle that filters.

import { change, go } from "../address.js";
import { fill, h } from "../dom.js";
import { scaleLegend, scatter } from "../draw/scatter.js";
import { kindFor } from "../draw/scales.js";
import { count } from "../format.js";
import { select } from "./controls.js";
import { columnOptions } from "./filters.js";
import { panel, wrong } from "./states.js";
import { columnOfLatents, litBy } from "../rows.js";
import { parseWhere, writeWhere } from "../where.js";

function isNumber(column) {
  return /int|float|decimal/i.test(column.type);
}

// The plot and its choices. {element, set(query), point(latent)}.
export function plotOf(view, pointed) {
  const columns = view.columns.filter(isNumber);
  const names = columns.map((column) => column.name);
  const pick = (query, name, otherwise) =>
    names.includes(query[name]) ? query[name] : names.includes(otherwise) ? otherwise : names[0];
  const legend = h("div");
  const text = h("p", { class: "note" });
  const axes = h("div", { class: "axes" });
  let now = null;
  let where = "";
  let turn = 0;

  const plot = scatter("Latents", {
    brushed({ x, y }) {
      const four = (value) => Number(value.toPrecision(4));
      const rest = parseWhere(where).filter((one) => one.column !== now.x && one.column !== now.y);
      const edges = [
        [now.x, x],
        [now.y, y],
      ].flatMap(([column, [low, high]]) => [
        { column, op: ">=", value: four(low) },
        { column, op: "<=", value: four(high) },
      ]);
      change({ where: writeWhere([...rest, ...edges]) });
    },
    pointed,
    picked: (latent) => go(["v", view.key, "latent", latent]),
  });
  const body = h("div", null, plot.element);
  const element = panel(
    h("header", null, h("h2", null, "Map of latents"), h("span", { class: "gap" }), axes),
    { data: { role: "scatter" } },
    body,
    legend,
    text,
  );

  async function set(query) {
    const mine = ++turn;
    where = query.where || "";
    const next = {
      x: pick(query, "x", "frequency"),
      y: pick(query, "y", "mean_activation"),
      color: pick(query, "color", "label_entropy"),
    };
    try {
      if (!now || JSON.stringify(next) !== JSON.stringify(now)) {
        now = next;
        const options = columnOptions(columns);
        fill(
          axes,
          select("across", options, next.x, (value) => change({ x: value }, true)),
          select("upwards", options, next.y, (value) => change({ y: value }, true)),
          select("colour", options, next.color, (value) => change({ color: value }, true)),
        );
        const [x, y, colour] = await Promise.all(
          [next.x, next.y, next.color].map((name) => columnOfLatents(view.key, name)),
        );
        if (mine !== turn) return;
        const said = plot.set({
          ids: x.map((_, i) => i),
          x: { name: next.x, values: x, kind: kindFor(x) },
          y: { name: next.y, values: y, kind: kindFor(y) },
          colour: { name: next.color, values: colour },
        });
        fill(legend, scaleLegend(next.color, said.range));
        const out = x.length - said.shown;
        const left = `${count(out, "latent")} with a zero or missing value`;
        const lost = out ? ` ${left} ${out === 1 ? "has" : "have"} no place on these axes.` : "";
        text.textContent = `Drag a rectangle to filter the table.${lost}`;
      }
      const lit = await litBy(view.key, query, view.n_latents);
      if (mine === turn) plot.light(lit);
    } catch (error) {
      if (mine === turn) fill(legend, wrong(error));
    }
  }
  return { element, set, point: plot.point };
}
