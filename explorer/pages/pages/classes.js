// The classes of a view.

import { change, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { count, whole } from "../format.js";
import { table } from "../parts/controls.js";
import { empty, note, pageHead } from "../parts/states.js";
import { classesOf } from "../state.js";

const MOST = 500;

export async function classesPage(_, query, view) {
  const classes = view.classes ? await classesOf(view.key) : [];
  const body = h("div");
  const to = (one, page) =>
    page === "class"
      ? makeAddress(["v", view.key, "class", one.id])
      : makeAddress(["v", view.key, "latents"], { class: one.id });
  const draw = (text) => {
    const like = (text || "").toLowerCase();
    const left = classes.filter((one) => one.name.toLowerCase().includes(like));
    fill(
      body,
      left.length
        ? table(
            "Classes",
            [
              { name: "id", number: true },
              { name: "class" },
              { name: "images", number: true },
              { name: "latents" },
            ],
            left
              .slice(0, MOST)
              .map((one) => [
                String(one.id),
                h("a", { href: to(one, "class"), data: { class: one.id } }, one.name),
                whole(one.n_images),
                h("a", { href: to(one), "aria-label": `its latents: ${one.name}` }, "its latents"),
              ]),
          )
        : empty(classes.length ? "No class is called that." : "The images of this view have no classes."),
      left.length > MOST
        ? note(`The first ${MOST} of ${whole(left.length)}: write a part of the name to find others.`)
        : null,
    );
  };
  const box = h("input", {
    type: "search",
    value: query.find || "",
    placeholder: "Find a class",
    "aria-label": "Find a class",
    oninput: () => change({ find: box.value }, true),
  });
  draw(query.find);
  return {
    title: "Classes",
    element: h(
      "div",
      { class: "stack" },
      pageHead("Classes", `${count(classes.length, "class", "classes")} of ${view.dataset}`, box),
      body,
    ),
    update: (next) => draw(next.find),
  };
}
