// A row of a latent's first images with their maps.

import { makeAddress } from "../address.js";
import { h } from "../dom.js";
import { tile } from "../draw/tile.js";
import { number } from "../format.js";
import { get, isReport } from "../source.js";

// {element, maps(), draw(maps)}: the images, a promise of their maps, and what draws these.
export function fewTiles(view, latent, examples, digits) {
  const tiles = examples.map((example) =>
    tile(view, example, {
      href: makeAddress(["v", view.key, "image", example.image], { latents: latent }),
      detail: number(example.activation, digits),
      size: 96,
    }),
  );
  const images = examples.map((example) => example.image).join(",");
  return {
    element: h(
      "div",
      { class: "tiles few" },
      tiles.map((one) => one.element),
    ),
    maps: () => get(`maps/${view.key}/${latent}`, isReport() ? null : { images }),
    draw: (maps) =>
      examples.forEach((example, i) =>
        tiles[i].set({ values: maps.maps[example.image] || null, max: maps.max, mode: "heat" }),
      ),
  };
}
