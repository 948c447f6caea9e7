// A tile: a small picture with a latent's map on it, its tokens beside the grid as cells, and a caption.

import { h } from "../dom.js";
import { number, tokenName } from "../format.js";
import { tip } from "../parts/controls.js";
import { pictureOf, truthOf } from "../source.js";
import { css, shade } from "./colours.js";
import { paintMap, tokenUnder } from "./map.js";

const painters = new WeakMap();
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) painters.get(target)?.();
});

// The picture alone, with a canvas on it. Returns {element, canvas}.
export function look(address, { width, height, alt, size }) {
  const image = h("img", { src: address, alt, loading: "lazy", decoding: "async", draggable: "false" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const element = h(
    "div",
    { class: `look${Math.max(width, height) < (size || 128) ? " pixels" : ""}` },
    image,
    canvas,
  );
  element.style.setProperty("--ratio", `${width} / ${height}`);
  image.addEventListener("error", () => element.classList.add("gone"), { once: true });
  return { element, canvas, image };
}

// Calls `paint` now and whenever the element's size changes.
export function repaint(element, paint) {
  painters.set(element, paint);
  sizes.observe(element);
}

function cellsBeside(layout) {
  const [rows, columns] = layout.grid;
  const after = layout.prefix + rows * columns;
  const tokens = [];
  for (let token = 0; token < layout.prefix; token++) tokens.push(token);
  for (let token = after; token < after + (layout.suffix || 0); token++) tokens.push(token);
  return tokens;
}

// A tile of an image under a view. `example` has image, width, height, box, class_name and what the caption
// says. Returns {element, set({values, max, mode, truth})}; `values` are those of all tokens, `truth`
// whether what the image really shows is outlined.
export function tile(view, example, { href, title, detail, map, size, address, note }) {
  const layout = view.layout;
  const name = title || example.class_name || `image ${example.image}`;
  const seen = look(address || pictureOf(view, example.image, size || 224), {
    width: example.width,
    height: example.height,
    alt: title ? example.class_name || "" : `Image ${example.image}`,
    size: 128,
  });
  const cells = layout ? cellsBeside(layout) : [];
  const beside = cells.map((token) => h("i", { title: tokenName(layout, token), data: { token } }));
  const frame = h(
    "div",
    { class: "frame" },
    beside.length && map !== false
      ? h("div", { class: "beside", "aria-hidden": "true" }, beside.slice(0, 12))
      : null,
    seen.element,
  );
  const caption = h(
    "figcaption",
    null,
    h("span", { title: name }, name),
    detail ? h("span", { class: "number" }, detail) : null,
  );
  const body = href ? h("a", { href }, frame, caption) : h("div", null, frame, caption);
  const element = h("figure", { class: "tile", data: { image: example.image } }, body, note || null);
  let now = { values: null, max: 0, mode: "off" };

  const paint = () => {
    if (!layout) return;
    paintMap(seen.canvas, { ...now, layout, box: example.box || [0, 0, 1, 1] });
    for (const cell of beside) {
      const value = now.values ? now.values[Number(cell.dataset.token)] || 0 : 0;
      const share = now.max > 0 ? Math.min(1, value / now.max) : 0;
      cell.style.background = share > 0 && now.mode !== "off" ? css(shade(share)) : "";
      cell.title = now.values
        ? `${tokenName(layout, Number(cell.dataset.token))}: ${number(value)}`
        : cell.title;
    }
  };
  if (layout) {
    repaint(seen.canvas, paint);
    seen.element.addEventListener("pointermove", (event) => {
      const token = tokenUnder(event, seen.element, example.box || [0, 0, 1, 1], layout);
      if (token === null || !now.values) tip(token === null ? "outside of what the model sees" : "", event);
      else tip(`${tokenName(layout, token)} (token ${token}): ${number(now.values[token] || 0)}`, event);
    });
    seen.element.addEventListener("pointerleave", () => tip(""));
  }
  let truth = null;
  const overlay = (wanted) => {
    if (wanted && !truth) {
      truth = h("img", { class: "truth", src: truthOf(view, example.image), alt: "", loading: "lazy" });
      seen.element.append(truth);
    }
    if (truth) truth.hidden = !wanted;
  };
  return {
    element,
    set(values) {
      now = { ...now, ...values };
      if (view.truth) overlay(Boolean(now.truth));
      element.dataset.map = now.values ? now.mode : "none";
      paint();
    },
  };
}
