// A latent's activation over a picture, on a canvas that lies on the picture.

import { cellAt, seenRectangle, smoothed } from "./geometry.js";
import { shade, themed } from "./colours.js";

// [value in an address, words].
export const MAP_MODES = [
  ["heat", "Heat"],
  ["cells", "Cells"],
  ["light", "Spotlight"],
  ["off", "Off"],
];

const FINEST = 192;
let unseen = null;

// The theme may have changed.
export function forgetColours() {
  unseen = null;
}

function pixel(data, at, share, mode) {
  if (mode === "light") {
    data[at] = data[at + 1] = data[at + 2] = 8;
    data[at + 3] = 215 * (1 - Math.min(1, Math.sqrt(share) * 1.1));
    return;
  }
  const [r, g, b] = shade(share);
  data[at] = r;
  data[at + 1] = g;
  data[at + 2] = b;
  data[at + 3] = 225 * Math.min(1, 1.2 * Math.max(0, share) ** 0.8);
}

function imageOf(shares, width, height, mode) {
  const small = document.createElement("canvas");
  small.width = width;
  small.height = height;
  const context = small.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < shares.length; i++) pixel(image.data, 4 * i, shares[i], mode);
  context.putImageData(image, 0, 0);
  return small;
}

// Values of the patches as shares of `max`, row by row.
export function sharesOf(values, layout, max) {
  const [rows, columns] = layout.grid;
  const shares = new Float32Array(rows * columns);
  for (let i = 0; i < shares.length; i++) {
    const value = values[layout.prefix + i];
    shares[i] = max > 0 && value > 0 ? Math.min(1, value / max) : 0;
  }
  return shares;
}

// Sets a canvas to its size on the screen. Returns {context, width, height} in CSS pixels, or null if it
// has none.
export function sized(canvas) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(canvas.width / width, canvas.height / height);
  return { context, width, height };
}

// Draws a map over the whole picture: `values` of all tokens (or null), `box` and `layout` as in geometry.js.
export function paintMap(canvas, { values, layout, box, max, mode }) {
  const place = sized(canvas);
  if (!place) return;
  const { context } = place;
  const seen = seenRectangle(place, box);
  if (mode === "off") return;
  if (
    seen.x > 0.5 ||
    seen.y > 0.5 ||
    seen.x + seen.width < place.width - 0.5 ||
    seen.y + seen.height < place.height - 0.5
  ) {
    unseen = unseen || themed("--unseen");
    context.fillStyle = unseen;
    context.beginPath();
    context.rect(0, 0, place.width, place.height);
    context.rect(seen.x, seen.y, seen.width, seen.height);
    context.fill("evenodd");
  }
  if (!values) return;
  const shares = sharesOf(values, layout, max);
  const [rows, columns] = layout.grid;
  if (mode === "cells") {
    context.imageSmoothingEnabled = false;
    context.drawImage(imageOf(shares, columns, rows, "heat"), seen.x, seen.y, seen.width, seen.height);
    return;
  }
  const width = Math.min(FINEST, Math.max(columns, Math.round(seen.width)));
  const height = Math.min(FINEST, Math.max(rows, Math.round(seen.height)));
  context.imageSmoothingQuality = "high";
  context.drawImage(
    imageOf(smoothed(shares, rows, columns, width, height), width, height, mode),
    seen.x,
    seen.y,
    seen.width,
    seen.height,
  );
}

// Outlines patches: tokens as a set, and one cell that is stronger, on a canvas of its own.
export function paintChosen(canvas, { tokens, at, layout, box }) {
  const place = sized(canvas);
  if (!place) return;
  const { context } = place;
  const seen = seenRectangle(place, box);
  const [rows, columns] = layout.grid;
  const width = seen.width / columns;
  const height = seen.height / rows;
  const outline = (row, column, colour, thick, inset) => {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(
      seen.x + column * width + inset,
      seen.y + row * height + inset,
      width - 2 * inset,
      height - 2 * inset,
    );
  };
  const chosen = new Set(tokens);
  const edges = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const token = layout.prefix + row * columns + column;
      if (!chosen.has(token)) continue;
      const [x, y] = [seen.x + column * width, seen.y + row * height];
      if (row === 0 || !chosen.has(token - columns)) edges.push([x, y, x + width, y]);
      if (row === rows - 1 || !chosen.has(token + columns))
        edges.push([x, y + height, x + width, y + height]);
      if (column === 0 || !chosen.has(token - 1)) edges.push([x, y, x, y + height]);
      if (column === columns - 1 || !chosen.has(token + 1)) edges.push([x + width, y, x + width, y + height]);
    }
  }
  for (const [colour, thick] of [
    ["#000", 4],
    ["#fff", 2],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.lineCap = "square";
    context.beginPath();
    for (const [x0, y0, x1, y1] of edges) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }
  if (at) {
    outline(at[0], at[1], "#000", 3, 0);
    outline(at[0], at[1], "#ffd23f", 1.5, 0);
  }
}

// The token under the pointer, or null.
export function tokenUnder(event, element, box, layout) {
  const place = element.getBoundingClientRect();
  const cell = cellAt(event.clientX - place.left, event.clientY - place.top, place, box, layout);
  return cell === null ? null : layout.prefix + cell[0] * layout.grid[1] + cell[1];
}
