// Images: one's own, one by its number, or those of a class.

import { change, go, makeAddress } from "../address.js";
import { fill, h } from "../dom.js";
import { tile } from "../draw/tile.js";
import { count, whole } from "../format.js";
import { select } from "../parts/controls.js";
import { empty, note, pageHead, panel, show } from "../parts/states.js";
import { uploader } from "../parts/upload.js";
import { get } from "../source.js";
import { classesOf } from "../state.js";

export async function imagesPage(_, query, view) {
  const upload = uploader(view);
  const classes = view.classes ? await classesOf(view.key) : [];
  const grid = h("div");
  const title = h("span", { class: "soft" });
  const box = h("input", {
    type: "number",
    min: 0,
    placeholder: "number",
    "aria-label": "Number of an image",
    id: "image-number",
  });
  const draw = (chosen) => {
    const one = classes.find((item) => String(item.id) === chosen) || classes[0];
    if (!one) {
      fill(grid, empty("The images of this view have no classes: open one by its number."));
      return;
    }
    show(grid, get(`class/${view.key}/${one.id}`), ({ images }) => {
      title.textContent = `${images.length} of ${count(one.n_images, "image")}`;
      return h(
        "div",
        { class: "tiles" },
        images.map(
          (image) =>
            tile(view, image, {
              map: false,
              href: makeAddress(["v", view.key, "image", image.image]),
              detail: String(image.image),
            }).element,
        ),
      );
    });
  };
  draw(query.class);
  const element = h(
    "div",
    { class: "stack" },
    pageHead(
      "Images",
      view.label,
      h(
        "form",
        {
          class: "row",
          onsubmit: (event) => {
            event.preventDefault();
            if (box.value !== "") go(["v", view.key, "image", Number(box.value)]);
          },
        },
        box,
        h("button", { type: "submit" }, "Open"),
      ),
    ),
    panel(
      "Your own picture",
      null,
      upload.element,
      note(
        `It is encoded by ${view.backbone} and ${view.sae} on this machine, and kept in the ` +
          `server's memory only.`,
      ),
    ),
    panel(
      h(
        "header",
        null,
        h("h2", null, "Images of a class"),
        title,
        h("span", { class: "gap" }),
        classes.length
          ? select(
              "class",
              classes.map((one) => [String(one.id), `${one.name} (${whole(one.n_images)})`]),
              query.class || String(classes[0].id),
              (value) => change({ class: value }),
            )
          : null,
      ),
      null,
      grid,
      view.pictures === false && view.pictures_why ? note(view.pictures_why) : null,
    ),
  );
  return { element, title: "Images", update: (next) => draw(next.class), close: upload.close };
}
