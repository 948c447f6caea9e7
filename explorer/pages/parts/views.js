// The views of an experiment as cards, or as a table where there are many.

import { makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, number, whole } from "../format.js";
import { table } from "./controls.js";
import { empty, panel } from "./states.js";

const MOST_VIEWS = 12;
function viewCard(view) {
  const base = ["v", view.key];
  return h(
    "li",
    { class: "card", data: { view: view.key } },
    h("h3", null, h("a", { href: makeAddress([...base, "latents"]) }, view.sae)),
    h(
      "p",
      { class: "small" },
      `on ${view.dataset}${view.split ? `, ${view.split}` : ""}, seen by ${view.backbone}`,
    ),
    h(
      "p",
      { class: "soft small" },
      `${whole(view.n_latents)} latents, ${whole(view.n_images)} images, ${whole(view.n_classes)} classes`,
    ),
    h(
      "div",
      { class: "row" },
      h("a", { class: "button", href: makeAddress([...base, "latents"]) }, "Latents"),
      view.n_classes ? h("a", { class: "button", href: makeAddress([...base, "classes"]) }, "Classes") : null,
      h("a", { class: "button", href: makeAddress([...base, "images"]) }, "Images"),
    ),
  );
}

function viewTable(views) {
  return table(
    "Views",
    [
      { name: "sae", text: "SAE" },
      { name: "dataset" },
      { name: "split" },
      { name: "backbone" },
      { name: "latents", number: true },
      { name: "images", number: true },
    ],
    views.map((view) => [
      h("a", { href: makeAddress(["v", view.key, "latents"]) }, view.sae),
      view.dataset,
      view.split,
      view.backbone,
      whole(view.n_latents),
      whole(view.n_images),
    ]),
  );
}

export function viewsPanel(views, running) {
  const body = h("div");
  const draw = (text) => {
    const like = text.toLowerCase();
    const left = views.filter((view) =>
      `${view.sae} ${view.dataset} ${view.split} ${view.backbone}`.toLowerCase().includes(like),
    );
    fill(
      body,
      views.length <= MOST_VIEWS
        ? h("ul", { class: "cards" }, left.map(viewCard))
        : h("div", { class: "low" }, viewTable(left)),
    );
  };
  draw("");
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Look at latents"),
      h("span", { class: "soft" }, count(views.length, "view")),
      h("span", { class: "gap" }),
      views.length > MOST_VIEWS
        ? h("input", {
            type: "search",
            placeholder: "Find a view",
            "aria-label": "Find a view",
            oninput: (event) => draw(event.target.value),
          })
        : null,
    ),
    null,
    views.length
      ? body
      : empty(
          "No statistics are there yet, so there are no latents to look at.",
          running
            ? "A run is at work: this page shows them as soon as it has made some."
            : "Add an evaluation of kind `statistics` to the experiment, or run `patchsae demo`.",
        ),
  );
}
