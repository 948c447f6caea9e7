// What a latent looks like at a glance: its first images with maps, for the latent that is pointed at.

import { makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { get } from "../source.js";
import { fewTiles } from "./few.js";
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
      const few = fewTiles(view, latent, examples, 3);
      fill(body, few.element);
      const maps = await few.maps();
      if (now === latent) few.draw(maps);
    } catch (error) {
      if (now === latent && error.status !== 404) fill(body, wrong(error));
    }
  }

  return { element, show, suggest: (latent) => now === null && show(latent) };
}
