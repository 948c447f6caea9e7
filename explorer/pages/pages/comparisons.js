// All comparisons of the store.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, words } from "../format.js";
import { table } from "../parts/controls.js";
import { empty, pageHead } from "../parts/states.js";
import { home } from "../state.js";

export async function comparisonsPage(_, query) {
  const { comparisons } = await home();
  const body = h("div");
  const draw = (text) => {
    const like = (text || "").toLowerCase();
    const left = comparisons.filter((one) =>
      `${one.name} ${one.first} ${one.second} ${one.experiment}`.toLowerCase().includes(like),
    );
    fill(
      body,
      left.length
        ? table(
            "Comparisons",
            [
              { name: "comparison" },
              { name: "of" },
              { name: "before, or first" },
              { name: "after, or second" },
              { name: "experiment" },
            ],
            left.map((one) => [
              h("a", { href: makeAddress(["compare", one.kind, one.key]) }, one.name),
              one.kind === "remapping" ? "two backbones" : "two SAEs",
              one.first,
              one.second,
              one.experiment || "–",
            ]),
          )
        : empty(
            comparisons.length ? "No comparison is called that." : "Nothing is compared yet.",
            "An evaluation of kind `remapping` compares a backbone with an adapted one, and " +
              "`matching` two SAEs.",
          ),
    );
  };
  const box = h("input", {
    type: "search",
    value: query.find || "",
    placeholder: "Find a comparison",
    "aria-label": "Find a comparison",
    oninput: () => change({ find: box.value }, true),
  });
  draw(query.find);
  return {
    title: "Compare",
    element: h(
      "div",
      { class: "stack" },
      pageHead("Compare", count(comparisons.length, words("comparison")), box),
      body,
    ),
    update: (next) => draw(next.find),
  };
}
