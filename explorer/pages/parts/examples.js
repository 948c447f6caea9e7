// Images of a latent with their maps: the largest, and those from bands of quantiles.

import { change, here as address, makeAddress } from "../address.js";
import { h } from "../dom.js";
import { MAP_MODES } from "../draw/map.js";
import { tile } from "../draw/tile.js";
import { number } from "../format.js";
import { choice } from "./controls.js";
import { note, panel } from "./states.js";

// Tiles of examples, whose maps come later. {element, tiles: [{image, set}]}.
export function tilesOf(view, examples, latent, detail) {
  const tiles = examples.map((example) => ({
    image: example.image,
    ...tile(view, example, {
      href: makeAddress(["v", view.key, "image", example.image], { latents: latent }),
      detail: detail === undefined ? number(example.activation, 3) : detail(example),
    }),
  }));
  return {
    element: h(
      "div",
      { class: "tiles large" },
      tiles.map((one) => one.element),
    ),
    tiles,
  };
}

// Keeps the maps of many tiles in the mode that is chosen, with or without the ground truth.
export function painter(mode, truth) {
  const groups = [];
  let now = { mode, truth };
  const paint = ({ tiles, maps }) =>
    tiles.forEach((one) =>
      one.set({ values: maps ? maps.maps[one.image] || null : null, max: maps ? maps.max : 0, ...now }),
    );
  return {
    add(tiles, maps) {
      const group = { tiles, maps: null };
      groups.push(group);
      paint(group);
      return maps.then((value) => {
        group.maps = value;
        paint(group);
      });
    },
    set(nextMode, nextTruth) {
      now = { mode: nextMode, truth: nextTruth };
      groups.forEach(paint);
    },
  };
}

export function examplesPanel(view, answer, paint, maps, query) {
  const top = tilesOf(view, answer.top, answer.latent);
  const missing = h("p", { class: "note", role: "status" });
  const wait = [paint.add(top.tiles, maps)];
  const groups = answer.examples.map((group) => {
    const made = tilesOf(view, group.images, answer.latent);
    wait.push(paint.add(made.tiles, maps));
    return h(
      "section",
      { data: { role: "quantile" } },
      h(
        "h3",
        null,
        group.name,
        h("span", { class: "soft small" }, " of the images that fire it, by activation"),
      ),
      made.element,
    );
  });
  const slow = setTimeout(() => {
    missing.textContent = "The maps are on their way; the first ones take longer, since the model is loaded.";
  }, 700);
  Promise.all(wait)
    .then(
      () => "",
      (error) => error.message,
    )
    .then((text) => {
      clearTimeout(slow);
      missing.textContent = text;
    });
  return [
    panel(
      h(
        "header",
        null,
        h("h2", null, "Top images"),
        h("span", { class: "soft" }, "largest mean activation over the tokens first"),
        h("span", { class: "gap" }),
        view.truth
          ? h(
              "label",
              null,
              h("input", {
                type: "checkbox",
                id: "truth",
                checked: query.truth === "1",
                onchange: (event) => change({ truth: event.target.checked ? "1" : null }, true),
              }),
              "Ground truth",
            )
          : null,
        choice("Maps", MAP_MODES, mode(), (value) => change({ map: value === "heat" ? null : value }, true)),
      ),
      { data: { role: "top" } },
      missing,
      answer.top.length ? top.element : note("No image of this split fires the latent: it is dead."),
      view.pictures === false && view.pictures_why ? note(view.pictures_why) : null,
    ),
    groups.length
      ? panel("From the middle and below", null, h("div", { class: "stack" }, groups))
      : answer.top.length
        ? note(
            "Images from the middle and the low quantiles, the histogram and co-firing latents are " +
              "in tables of the evaluation `gallery`: add one to the experiment and run it again.",
          )
        : null,
  ];
}

export function mode() {
  return address().query.map || "heat";
}
