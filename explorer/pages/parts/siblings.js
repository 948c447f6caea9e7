// The same latent of the same SAE on other images or another backbone.

import { change, makeAddress } from "../address.js";
import { h } from "../dom.js";
import { count, number } from "../format.js";
import { select, table } from "./controls.js";
import { note, panel, show } from "./states.js";
import { get } from "../source.js";
import { viewOf } from "../state.js";
import { tilesOf } from "./examples.js";

export function siblingsPanel(view, answer, query, paint) {
  if (!answer.siblings.length) return null;
  const chosen = answer.siblings.find((one) => one.view === query.beside);
  const names = [...new Set(["frequency", "mean_activation", "label_entropy"])].filter(
    (name) => answer.row[name] !== undefined,
  );
  const rows = [
    [h("strong", null, view.label), ...names.map((name) => number(answer.row[name]))],
    ...answer.siblings
      .slice(0, 60)
      .map((one) => [
        h(
          "a",
          { href: makeAddress(["v", one.view, "latent", answer.latent]) },
          one.label || `${one.dataset}, ${one.backbone}`,
        ),
        ...names.map((name) => number(one.row ? one.row[name] : null)),
      ]),
  ];
  const beside = h("div");
  if (chosen) {
    show(
      beside,
      Promise.all([viewOf(chosen.view), get(`latent/${chosen.view}/${answer.latent}`)]),
      ([other, theirs]) => {
        const left = tilesOf(view, answer.top.slice(0, 12), answer.latent);
        const right = tilesOf(other, theirs.top.slice(0, 12), answer.latent);
        paint.add(left.tiles, get(`maps/${view.key}/${answer.latent}`)).catch(() => null);
        paint.add(right.tiles, get(`maps/${other.key}/${answer.latent}`)).catch(() => null);
        return h(
          "div",
          { class: "halves", data: { role: "beside" } },
          h("div", null, h("h3", null, view.label), left.element),
          h(
            "div",
            null,
            h(
              "h3",
              null,
              h("a", { href: makeAddress(["v", other.key, "latent", answer.latent]) }, other.label),
            ),
            theirs.top.length ? right.element : note("Dead there: no image fires it."),
          ),
        );
      },
    );
  }
  return panel(
    h(
      "header",
      null,
      h("h2", null, "The same latent elsewhere"),
      h("span", { class: "soft" }, count(answer.siblings.length, "other view")),
      h("span", { class: "gap" }),
      select(
        "side by side with",
        [
          ["", "none"],
          ...answer.siblings.map((one) => [one.view, one.label || `${one.dataset}, ${one.backbone}`]),
        ],
        chosen ? chosen.view : "",
        (value) => change({ beside: value }),
      ),
    ),
    { data: { role: "siblings" } },
    beside,
    h(
      "details",
      { open: !chosen && answer.siblings.length <= 8 },
      h("summary", null, "Its numbers there"),
      table(
        "The same latent in other views",
        [{ name: "view" }, ...names.map((name) => ({ name, number: true }))],
        rows,
      ),
    ),
  );
}
