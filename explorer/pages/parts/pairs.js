// Latents of two views side by side: their images with maps, loaded when they come in sight.

import { makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { get } from "../source.js";
import { fewTiles } from "./few.js";
import { note, wrong } from "./states.js";

const N = 5;

async function tilesOf(place, view, latent) {
  try {
    const answer = await get(`latent/${view.key}/${latent}`);
    const examples = answer.top.slice(0, N);
    if (!examples.length) {
      fill(place, note("No image fires it."));
      return;
    }
    const few = fewTiles(view, latent, examples, 2);
    fill(place, few.element);
    const maps = await few.maps();
    few.draw(maps);
  } catch (error) {
    fill(place, error.status === 404 ? note(error.message) : wrong(error));
  }
}

const watch = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      loaders.get(entry.target)?.();
    }
  },
  { rootMargin: "200px" },
);

const loaders = new WeakMap();

// `sides`: [{view, latent, title}], two of them; `title` of the whole and what stands under it. A view may
// be null.
export function latentPair(title, detail, sides) {
  const places = sides.map(() => h("div", { css: { "min-height": "96px" } }));
  const element = h(
    "section",
    { class: "stack", data: { latent: sides[0].latent } },
    h("div", { class: "row" }, h("h3", null, title), h("span", { class: "soft small" }, detail)),
    h(
      "div",
      { class: "halves" },
      sides.map((side, i) =>
        h(
          "div",
          null,
          h(
            "p",
            { class: "small" },
            side.view
              ? h("a", { href: makeAddress(["v", side.view.key, "latent", side.latent]) }, side.title)
              : side.title,
          ),
          places[i],
        ),
      ),
    ),
  );
  loaders.set(element, () =>
    sides.forEach((side, i) =>
      side.view
        ? tilesOf(places[i], side.view, side.latent)
        : fill(
            places[i],
            note("Statistics of this side are not in the store: add an evaluation of kind `statistics`."),
          ),
    ),
  );
  watch.observe(element);
  return element;
}
