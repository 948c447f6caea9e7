// What a latent looks like at a glance: its first images with maps, for the latent that is pointed at.

import { makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { tile } from "../draw/tile.js";
import { number } from "../format.js";
import { get, isReport } from "../source.js";
import { note, panel, wrong } from "./states.js";

const N = 8;

// {element, show(latent or null), suggest(latent)}.
export function preview(view) {
  const title = h("h2", null, "Latent");
  const body = h("div", null, note("Point at a row or a dot to see what the latent sees."));
  const element = panel(h("header", null, title), { data: { role: "preview" } }, body);
  let now = null;

  async function show(latent) {
    if (latent === null || latent === now) return;
    now = latent;
    try {
      const answer = await get(`latent/${view.key}/${latent}`);
      if (now !== latent) return;
      const examples = answer.top.slice(0, N);
      fill(
        title,
        h("a", { href: makeAddress(["v", view.key, "latent", latent]) }, `Latent ${latent}`),
        h("span", { class: "soft" }, ` ${answer.row.name || ""}`),
      );
      if (!examples.length) {
        fill(body, note("It fires on no image."));
        return;
      }
      const tiles = examples.map((example) =>
        tile(view, example, {
          href: makeAddress(["v", view.key, "image", example.image], { latents: latent }),
          detail: number(example.activation, 3),
          size: 96,
        }),
      );
      fill(
        body,
        h(
          "div",
          { class: "tiles few" },
          tiles.map((one) => one.element),
        ),
      );
      const maps = await get(
        `maps/${view.key}/${latent}`,
        isReport() ? null : { images: examples.map((example) => example.image).join(",") },
      );
      if (now !== latent) return;
      examples.forEach((example, i) =>
        tiles[i].set({ values: maps.maps[example.image] || null, max: maps.max, mode: "heat" }),
      );
    } catch (error) {
      if (now === latent && error.status !== 404) fill(body, wrong(error));
    }
  }

  return { element, show, suggest: (latent) => now === null && show(latent) };
}
