// Points on a canvas: tens of thousands at once, with axes, hover and a rectangle that selects.

import { h } from "../dom.js";
import { number, words } from "../format.js";
import { tip } from "../parts/controls.js";
import { CATEGORIES, css, isDark, shadeOnPage, themed } from "./colours.js";
import { repaint } from "./tile.js";
import { sized } from "./map.js";
import { paintAxes, paintLines } from "./axes.js";
import { makeScale, rangeOf } from "./scales.js";

const SHADES = 48;
const TURNS = 6;
const EDGE = { left: 54, right: 12, top: 10, bottom: 38 };

function bucketsOf(spec) {
  const n = spec.ids.length;
  const buckets = new Uint8Array(n);
  if (spec.groups) {
    for (let i = 0; i < n; i++) buckets[i] = spec.groups.of[i];
    return {
      buckets,
      colours: spec.groups.names.map((name, i) => spec.groups.colours?.[i] || CATEGORIES[i % 7]),
      range: null,
    };
  }
  const values = spec.colour ? spec.colour.values : null;
  const [low, high] = values ? rangeOf(values, "linear") : [0, 1];
  for (let i = 0; i < n; i++) {
    const value = values ? values[i] : null;
    buckets[i] =
      value === null || Number.isNaN(value)
        ? SHADES
        : high > low
          ? Math.min(SHADES - 1, Math.floor(((value - low) / (high - low)) * SHADES))
          : 0;
  }
  const colours = Array.from({ length: SHADES }, (_, i) => css(shadeOnPage(i / (SHADES - 1))));
  return { buckets, colours: [...colours, isDark() ? "#7c858d" : "#8a857a"], range: [low, high] };
}

// A plot with nothing in it. `brushed({x: [low, high], y: [low, high]})`, `pointed(id or null)` and
// `picked(id)` are called. set() takes {ids, x: {name, values, kind}, y, colour: {name, values} or groups:
// {of, names, colours}, lit, lines: [{axis, at, text, low: whether its text stands at the low end}],
// diagonal}. `lit` marks the points that a filter leaves (1) or is null.
export function scatter(label, { brushed, pointed, picked }) {
  const canvas = h("canvas", { role: "img", "aria-label": label });
  const over = h("canvas", { "aria-hidden": "true" });
  for (const one of [canvas, over]) Object.assign(one.style, { position: "absolute", inset: "0" });
  const element = h("div", { class: "plot scatter" }, canvas, over);
  let spec = null;
  let axes = null;
  let made = null;
  let at = -1;
  let drag = null;
  let cells = null;

  function place(i, area) {
    return [
      area.x + axes.x.to(spec.x.values[i]) * area.width,
      area.y + (1 - axes.y.to(spec.y.values[i])) * area.height,
    ];
  }

  function areaOf(size) {
    return {
      x: EDGE.left,
      y: EDGE.top,
      width: Math.max(1, size.width - EDGE.left - EDGE.right),
      height: Math.max(1, size.height - EDGE.top - EDGE.bottom),
    };
  }

  function drawn(i) {
    const [x, y] = [spec.x.values[i], spec.y.values[i]];
    if (x === null || y === null || !Number.isFinite(x) || !Number.isFinite(y)) return false;
    return !(spec.x.kind === "log" && x <= 0) && !(spec.y.kind === "log" && y <= 0);
  }

  function paintPoints(context, area) {
    const n = spec.ids.length;
    const many = n > 4000;
    const size = many ? 2 : n > 800 ? 3.5 : 5;
    const away = isDark() ? "rgb(140 150 158 / 0.25)" : "rgb(90 86 78 / 0.18)";
    // Colours of a scale take turns, so that the last ones do not cover the others. Of groups, the
    // first, to which most points belong, lies below the others, whose points are larger.
    const colours = made.colours.length;
    const turns = spec.groups ? 1 : TURNS;
    const lists = Array.from({ length: turns * colours }, () => []);
    const dim = [];
    cells = new Map();
    for (let i = 0; i < n; i++) {
      if (!drawn(i)) continue;
      if (spec.lit && !spec.lit[i]) dim.push(i);
      else lists[(i % turns) * colours + made.buckets[i]].push(i);
    }
    const dot = (i, size) => {
      const [x, y] = place(i, area);
      const cell = Math.floor(x / 16) * 4096 + Math.floor(y / 16);
      if (!cells.has(cell)) cells.set(cell, []);
      cells.get(cell).push([i, x, y]);
      if (many) context.rect(x - size / 2, y - size / 2, size, size);
      else {
        context.moveTo(x + size / 2, y);
        context.arc(x, y, size / 2, 0, 2 * Math.PI);
      }
    };
    const layer = (list, colour, alpha, wide) => {
      if (!list.length) return;
      context.globalAlpha = alpha;
      context.fillStyle = colour;
      context.beginPath();
      list.forEach((i) => dot(i, wide));
      context.fill();
    };
    layer(dim, away, 1, size);
    lists.forEach((list, i) =>
      layer(list, made.colours[i % colours], many ? 0.8 : 0.88, spec.groups && i ? size + 2.5 : size),
    );
    context.globalAlpha = 1;
  }

  function paint() {
    const size = sized(canvas);
    if (!size || !spec) return;
    const area = areaOf(size);
    paintAxes(size.context, area, axes, spec);
    size.context.save();
    size.context.beginPath();
    size.context.rect(area.x - 4, area.y - 4, area.width + 8, area.height + 8);
    size.context.clip();
    paintPoints(size.context, area);
    size.context.restore();
    paintLines(size.context, area, axes, spec);
    paintOver();
  }

  function paintOver() {
    const size = sized(over);
    if (!size || !spec) return;
    const { context } = size;
    if (drag && drag.moved) {
      context.fillStyle = themed("--brush");
      context.strokeStyle = themed("--accent");
      const [x, y] = [Math.min(drag.x0, drag.x1), Math.min(drag.y0, drag.y1)];
      context.fillRect(x, y, Math.abs(drag.x1 - drag.x0), Math.abs(drag.y1 - drag.y0));
      context.strokeRect(x, y, Math.abs(drag.x1 - drag.x0), Math.abs(drag.y1 - drag.y0));
    }
    if (at >= 0 && drawn(at)) {
      const [x, y] = place(at, areaOf(size));
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.lineWidth = 4;
      context.strokeStyle = themed("--panel");
      context.stroke();
      context.lineWidth = 2;
      context.strokeStyle = themed("--ink");
      context.stroke();
    }
  }

  function nearest(x, y) {
    let best = -1;
    let least = 14 * 14;
    for (let column = Math.floor(x / 16) - 1; column <= Math.floor(x / 16) + 1; column++) {
      for (let row = Math.floor(y / 16) - 1; row <= Math.floor(y / 16) + 1; row++) {
        for (const [i, px, py] of (cells && cells.get(column * 4096 + row)) || []) {
          const distance = (px - x) ** 2 + (py - y) ** 2;
          if (distance < least && !(spec.lit && !spec.lit[i] && best >= 0)) [best, least] = [i, distance];
        }
      }
    }
    return best;
  }

  function spot(event) {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  element.addEventListener("pointerdown", (event) => {
    if (!spec || event.button) return;
    const [x, y] = spot(event);
    drag = { x0: x, y0: y, x1: x, y1: y, moved: false };
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!spec) return;
    const [x, y] = spot(event);
    if (drag && brushed) {
      Object.assign(drag, { x1: x, y1: y, moved: drag.moved || Math.hypot(x - drag.x0, y - drag.y0) > 4 });
      if (drag.moved) {
        tip("");
        paintOver();
        return;
      }
    }
    const found = nearest(x, y);
    if (found !== at) {
      at = found;
      paintOver();
      if (pointed) pointed(at < 0 ? null : spec.ids[at]);
    }
    const values = (axis) => `${spec[axis].text || words(spec[axis].name)} ${number(spec[axis].values[at])}`;
    const third =
      at >= 0 && spec.colour ? `, ${words(spec.colour.name)} ${number(spec.colour.values[at])}` : "";
    tip(at < 0 ? "" : `latent ${spec.ids[at]}: ${values("x")}, ${values("y")}${third}`, event);
  });
  element.addEventListener("pointerleave", () => tip(""));
  element.addEventListener("pointercancel", () => {
    drag = null;
    paintOver();
  });
  element.addEventListener("pointerup", () => {
    const done = drag;
    drag = null;
    if (!done || !spec) return;
    if (!done.moved) {
      if (at >= 0 && picked) picked(spec.ids[at]);
      return;
    }
    const size = { width: element.clientWidth, height: element.clientHeight };
    const area = areaOf(size);
    const share = (value, low, length) => Math.min(1, Math.max(0, (value - low) / length));
    const xs = [done.x0, done.x1].sort((a, b) => a - b).map((x) => axes.x.from(share(x, area.x, area.width)));
    const ys = [done.y1, done.y0]
      .sort((a, b) => b - a)
      .map((y) => axes.y.from(1 - share(y, area.y, area.height)));
    paintOver();
    brushed({ x: xs, y: ys });
  });

  function describe() {
    const shown = spec.ids.reduce((n, _, i) => n + (drawn(i) ? 1 : 0), 0);
    const part = (axis) =>
      `${spec[axis].text || words(spec[axis].name)} from ${number(axes[axis].low)} to ` +
      `${number(axes[axis].high)}`;
    canvas.setAttribute(
      "aria-label",
      `${label}: ${shown} points, ${part("x")} across, ${part("y")} upwards.`,
    );
    return shown;
  }

  repaint(element, paint);
  return {
    element,
    set(next) {
      spec = next;
      const range = (axis) => rangeOf(axis.values, axis.kind);
      const widen = (axis) => {
        const [low, high] = axis.range || range(axis);
        if (axis.kind !== "linear" || axis.range) return makeScale(axis.kind, low, high);
        const pad = (high - low) * 0.03;
        return makeScale("linear", low - (low === 0 ? 0 : pad), high + pad);
      };
      axes = { x: widen(spec.x), y: widen(spec.y) };
      made = bucketsOf(spec);
      at = -1;
      paint();
      return { shown: describe(), range: made.range };
    },
    light(lit) {
      if (!spec) return;
      spec.lit = lit;
      paint();
    },
    point(id) {
      if (!spec) return;
      at = id === null ? -1 : spec.ids.indexOf(id);
      paintOver();
    },
  };
}

// A bar with the colours of a scale and its two ends.
export function scaleLegend(name, range) {
  const canvas = h("canvas", { width: 120, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 120; x++) {
    context.fillStyle = css(shadeOnPage(x / 119));
    context.fillRect(x, 0, 1, 1);
  }
  return h(
    "div",
    { class: "legend" },
    h("span", null, words(name)),
    number(range[0], 3),
    canvas,
    number(range[1], 3),
  );
}
