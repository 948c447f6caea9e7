// The large picture: a map on it, patches that can be clicked, dragged over and walked with the arrow keys,
// and the tokens beside the grid as buttons.

import { fill, h, say } from "../dom.js";
import { css, shade } from "../draw/colours.js";
import { cellOfToken, nearestCell, tokenOfCell, tokensBetween } from "../draw/geometry.js";
import { paintChosen, paintMap, tokenUnder } from "../draw/map.js";
import { look, repaint } from "../draw/tile.js";
import { number, tokenName } from "../format.js";
import { tip } from "./controls.js";

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// `image`: {width, height, box}; `choose(tokens)` is called with the patches that were clicked or dragged
// over. Returns {element, set({values, max, mode, tokens}), overlay(address or null)}.
export function picture(image, layout, address, { choose, name }) {
  const seen = look(address, { width: image.width, height: image.height, alt: name });
  const frame = seen.element;
  const marks = h("canvas", { "aria-hidden": "true" });
  const truth = h("img", { alt: "", hidden: true, "aria-hidden": "true" });
  frame.append(truth, marks);
  const state = { values: null, max: 0, mode: "heat", tokens: [], cell: null };
  let drag = null;
  const outside = h("div", { class: "outside" });
  const element = h("div", { class: "stage" }, outside, h("div", { class: "picture" }, frame));
  if (image.width < image.height)
    frame.parentElement.style.maxWidth = `${Math.round((640 * image.width) / image.height)}px`;

  if (layout) {
    Object.assign(frame, { tabIndex: 0 });
    frame.setAttribute("role", "application");
    frame.setAttribute(
      "aria-label",
      `${name}. ${layout.grid[0]} by ${layout.grid[1]} patches: arrow keys move, Shift and arrows ` +
        `extend, Enter chooses.`,
    );
  }

  const valueOf = (token) => (state.values ? `: ${number(state.values[token] || 0)}` : "");

  function paintBeside() {
    const [rows, columns] = layout.grid;
    const last = layout.prefix + rows * columns;
    const tokens = [
      ...Array(layout.prefix).keys(),
      ...Array.from({ length: layout.suffix || 0 }, (_, i) => last + i),
    ];
    const held = document.activeElement && document.activeElement.dataset.token;
    fill(
      outside,
      tokens.map((token) => {
        const share = state.values && state.max > 0 ? Math.min(1, (state.values[token] || 0) / state.max) : 0;
        return h(
          "button",
          {
            type: "button",
            "aria-pressed": String(state.tokens.includes(token)),
            data: { token },
            title: `${tokenName(layout, token)} (token ${token})${valueOf(token)}`,
            onclick: (event) => pick([token], event.shiftKey),
          },
          h("span", {
            class: "swatch",
            css: { background: share > 0 && state.mode !== "off" ? css(shade(share)) : "transparent" },
          }),
          tokenName(layout, token),
        );
      }),
    );
    if (held) outside.querySelector(`[data-token="${held}"]`)?.focus();
    outside.hidden = !tokens.length;
  }

  function paint() {
    if (!layout) return;
    paintMap(seen.canvas, { ...state, layout, box: image.box });
    paintChosen(marks, { tokens: drag ? drag.tokens : state.tokens, at: state.cell, layout, box: image.box });
    frame.dataset.tokens = (drag ? drag.tokens : state.tokens).join(",");
  }

  function pick(tokens, more) {
    const same =
      tokens.length === state.tokens.length && tokens.every((token) => state.tokens.includes(token));
    if (more) choose([...new Set([...state.tokens, ...tokens])]);
    else choose(same ? [] : tokens);
  }

  const at = (event) => {
    const place = frame.getBoundingClientRect();
    return nearestCell(event.clientX - place.left, event.clientY - place.top, place, image.box, layout);
  };
  if (layout) {
    frame.addEventListener("pointerdown", (event) => {
      if (event.button || tokenUnder(event, frame, image.box, layout) === null) return;
      const first = at(event);
      drag = { first, tokens: [tokenOfCell(first, layout)], more: event.shiftKey };
      frame.setPointerCapture(event.pointerId);
      paint();
    });
    frame.addEventListener("pointermove", (event) => {
      const token = tokenUnder(event, frame, image.box, layout);
      if (drag) {
        drag.tokens = tokensBetween(drag.first, at(event), layout);
        paint();
      }
      frame.dataset.token = token === null ? "" : String(token);
      tip(
        token === null
          ? "outside of what the model sees"
          : `${tokenName(layout, token)} (token ${token})${valueOf(token)}`,
        event,
      );
    });
    frame.addEventListener("pointerleave", () => tip(""));
    frame.addEventListener("pointerup", () => {
      const done = drag;
      drag = null;
      if (done) pick(done.tokens, done.more);
      paint();
    });
    frame.addEventListener("pointercancel", () => {
      drag = null;
      paint();
    });
    frame.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (step) {
        const [rows, columns] = layout.grid;
        const from = state.cell || cellOfToken(state.tokens[0] ?? -1, layout) || [-step[0], -step[1]];
        const inside = (value, n) => Math.min(n - 1, Math.max(0, value));
        state.cell = [inside(from[0] + step[0], rows), inside(from[1] + step[1], columns)];
        const token = tokenOfCell(state.cell, layout);
        say(`${tokenName(layout, token)}${valueOf(token)}`);
        if (event.shiftKey) choose([...new Set([...state.tokens, token])]);
        paint();
      } else if ((event.key === "Enter" || event.key === " ") && state.cell) {
        pick([tokenOfCell(state.cell, layout)], event.shiftKey);
      } else if (event.key === "Escape" && (state.tokens.length || state.cell)) {
        state.cell = null;
        choose([]);
        paint();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    frame.addEventListener("blur", () => {
      state.cell = null;
      paint();
    });
    repaint(seen.canvas, paint);
  }

  return {
    element,
    set(values) {
      Object.assign(state, values);
      if (layout) paintBeside();
      paint();
    },
    overlay(source) {
      truth.hidden = !source;
      if (source && truth.getAttribute("src") !== source) truth.src = source;
    },
  };
}
