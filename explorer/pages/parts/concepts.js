// The latents of an image as a list with small maps.

import { makeAddress } from "../address.js";
import { h } from "../dom.js";
import { look, repaint } from "../draw/tile.js";
import { paintMap } from "../draw/map.js";
import { number, tokenName } from "../format.js";
import { get } from "../source.js";

// The list of latents with small maps. `act` has pin(latent), edit(latent) and point(latent or null).
export function conceptList(view, image, source, rows, code, chosen, act) {
  const known = new Map(image.latents.map((one) => [one.latent, one]));
  const most = Math.max(...rows.map((row) => row.activation), 1e-12);
  return h(
    "ol",
    { class: "concepts" },
    rows.map((row) => {
      const small = look(source(96), { width: image.width, height: image.height, alt: "" });
      const values = code ? code.map(row.latent) : null;
      if (values && view.layout) {
        repaint(small.canvas, () =>
          paintMap(small.canvas, {
            values,
            max: Math.max(...values),
            mode: "heat",
            box: image.box,
            layout: view.layout,
          }),
        );
      }
      const about = known.get(row.latent);
      const pinned = chosen.includes(row.latent);
      return h(
        "li",
        {
          class: `concept${pinned ? " at" : ""}`,
          data: { latent: row.latent },
          onpointerenter: () => act.point(row.latent),
          onpointerleave: () => act.point(null),
        },
        small.element,
        h(
          "div",
          null,
          h(
            "div",
            { class: "row" },
            h("a", { href: makeAddress(["v", view.key, "latent", row.latent]) }, `Latent ${row.latent}`),
            h("span", { class: "number soft" }, number(row.activation, 3)),
          ),
          h(
            "span",
            { class: "meter", "aria-hidden": "true" },
            h("i", { css: { width: `${(100 * row.activation) / most}%` } }),
          ),
          h(
            "div",
            { class: "soft small" },
            about
              ? `frequency ${number(about.frequency, 3)}, entropy ${number(about.label_entropy, 3)}`
              : row.token >= 0 && view.layout
                ? `largest at ${tokenName(view.layout, row.token)}`
                : "",
          ),
        ),
        h(
          "div",
          { class: "row" },
          h(
            "button",
            {
              type: "button",
              "aria-pressed": String(pinned),
              "aria-label": `${pinned ? "Hide" : "Map"}: latent ${row.latent}`,
              onclick: () => act.pin(row.latent),
            },
            pinned ? "Hide" : "Map",
          ),
          act.edit
            ? h(
                "button",
                {
                  type: "button",
                  "aria-label": `Off: latent ${row.latent}`,
                  onclick: () => act.edit(row.latent),
                },
                "Off",
              )
            : null,
        ),
      );
    }),
  );
}
