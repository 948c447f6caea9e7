// One SAE: how it was trained, and where its latents were looked at.

import { makeAddress } from "../address.js";
import { h } from "../dom.js";
import { whole, words } from "../format.js";
import { facts } from "../parts/controls.js";
import { empty, panel } from "../parts/states.js";
import { trainingCurves } from "../parts/training.js";
import { home } from "../state.js";
import { Problem } from "../source.js";

export async function saePage({ sae: key }) {
  const store = await home();
  const sae = store.saes.find((one) => one.key === key);
  if (!sae) throw new Problem(`The store has no SAE ${key}. Home lists those it has.`, 404);
  const views = store.views.filter((view) => view.sae_key === key);
  const curve = sae.training || sae.objective !== "imported" ? trainingCurves(sae) : null;
  return {
    title: sae.name,
    element: h(
      "div",
      { class: "stack" },
      h(
        "div",
        { class: "head" },
        h("div", null, h("h1", null, sae.name), h("p", { class: "lead mono" }, sae.key)),
      ),
      facts(
        [
          ["objective", words(sae.objective || "–")],
          ["latents", whole(sae.n_latents)],
          ["channels", whole(sae.d)],
          ["images", sae.dataset || "–"],
          ["backbone", sae.backbone || "–"],
        ],
        { class: "facts small" },
      ),
      panel(
        "Its latents",
        null,
        views.length
          ? h(
              "ul",
              null,
              views.map((view) =>
                h("li", null, h("a", { href: makeAddress(["v", view.key, "latents"]) }, view.label)),
              ),
            )
          : empty(
              "No statistics of this SAE are there.",
              "Add an evaluation of kind `statistics` that names it, and run the experiment.",
            ),
      ),
      curve ? panel("Training", null, curve.element) : null,
    ),
    close: () => curve && curve.close(),
  };
}
