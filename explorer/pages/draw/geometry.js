// Pixels to tokens and back. Pure arithmetic, so that it can be tested without a browser.
//
// shown:  {width, height} of the whole picture as it is drawn, in any unit of length
// box:    [x0, y0, x1, y1], the part that the model sees, in fractions of the picture's width and height
// layout: {prefix, grid: [rows, columns], suffix}; tokens: prefix, patches row by row, suffix

// The seen part in the unit of `shown`.
export function seenRectangle(shown, box) {
  const [x0, y0, x1, y1] = box;
  return {
    x: x0 * shown.width,
    y: y0 * shown.height,
    width: (x1 - x0) * shown.width,
    height: (y1 - y0) * shown.height,
  };
}

// [row, column] of the patch at a point, or null outside the seen part.
export function cellAt(x, y, shown, box, layout) {
  const seen = seenRectangle(shown, box);
  const [rows, columns] = layout.grid;
  const across = (x - seen.x) / seen.width;
  const down = (y - seen.y) / seen.height;
  if (!(across >= 0 && across <= 1 && down >= 0 && down <= 1)) return null;
  return [Math.min(rows - 1, Math.floor(down * rows)), Math.min(columns - 1, Math.floor(across * columns))];
}

// The token at a point, or null outside the seen part.
export function tokenAt(x, y, shown, box, layout) {
  const cell = cellAt(x, y, shown, box, layout);
  return cell === null ? null : tokenOfCell(cell, layout);
}

export function tokenOfCell(cell, layout) {
  return layout.prefix + cell[0] * layout.grid[1] + cell[1];
}

// [row, column] of a token, or null if it is no patch.
export function cellOfToken(token, layout) {
  const [rows, columns] = layout.grid;
  const patch = token - layout.prefix;
  if (patch < 0 || patch >= rows * columns) return null;
  return [Math.floor(patch / columns), patch % columns];
}

// The rectangle of a token in the unit of `shown`, or null if it is no patch.
export function tokenRectangle(token, shown, box, layout) {
  const cell = cellOfToken(token, layout);
  if (cell === null) return null;
  const seen = seenRectangle(shown, box);
  const width = seen.width / layout.grid[1];
  const height = seen.height / layout.grid[0];
  return { x: seen.x + cell[1] * width, y: seen.y + cell[0] * height, width, height };
}

// The tokens of all patches between two cells, both included, in order.
export function tokensBetween(first, last, layout) {
  const tokens = [];
  for (let row = Math.min(first[0], last[0]); row <= Math.max(first[0], last[0]); row++) {
    for (let column = Math.min(first[1], last[1]); column <= Math.max(first[1], last[1]); column++) {
      tokens.push(tokenOfCell([row, column], layout));
    }
  }
  return tokens;
}

// The nearest cell to a point, also for a point outside: where a drag ends.
export function nearestCell(x, y, shown, box, layout) {
  const seen = seenRectangle(shown, box);
  const inside = (value, low, length) => Math.min(low + length, Math.max(low, value));
  return cellAt(inside(x, seen.x, seen.width), inside(y, seen.y, seen.height), shown, box, layout) || [0, 0];
}

export function tokenCount(layout) {
  return layout.prefix + layout.grid[0] * layout.grid[1] + (layout.suffix || 0);
}

// A picture's size when it is made to fit, never enlarged beyond `most` times its own pixels.
export function fit(width, height, within, most) {
  const scale = Math.min(within.width / width, within.height / height, most || Infinity);
  return { width: width * scale, height: height * scale };
}

// "3,5-9" -> [3, 5, 6, 7, 8, 9], for tokens below `n`; what is no number is left out.
export function parseTokens(text, n) {
  const tokens = new Set();
  for (const piece of String(text || "").split(",")) {
    const ends = piece.split("-").map((end) => (/^\d+$/.test(end.trim()) ? Number(end) : NaN));
    for (let token = ends[0]; token <= ends[ends.length - 1] && token < n; token++) tokens.add(token);
  }
  return [...tokens].sort((a, b) => a - b);
}

// The opposite: [3, 5, 6, 7] -> "3,5-7".
export function writeTokens(tokens) {
  const runs = [];
  for (const token of [...tokens].sort((a, b) => a - b)) {
    const last = runs[runs.length - 1];
    if (last && token === last[1] + 1) last[1] = token;
    else runs.push([token, token]);
  }
  return runs.map(([low, high]) => (low === high ? String(low) : `${low}-${high}`)).join(",");
}

// Values between the centres of the cells: a grid of rows x columns as height x width values, bilinear;
// beyond the outermost centres the value is that of the nearest cell.
export function smoothed(values, rows, columns, width, height) {
  const out = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const down = Math.min(rows - 1, Math.max(0, ((y + 0.5) / height) * rows - 0.5));
    const top = Math.floor(down);
    const bottom = Math.min(rows - 1, top + 1);
    for (let x = 0; x < width; x++) {
      const across = Math.min(columns - 1, Math.max(0, ((x + 0.5) / width) * columns - 0.5));
      const left = Math.floor(across);
      const right = Math.min(columns - 1, left + 1);
      const upper =
        values[top * columns + left] * (1 - across + left) + values[top * columns + right] * (across - left);
      const lower =
        values[bottom * columns + left] * (1 - across + left) +
        values[bottom * columns + right] * (across - left);
      out[y * width + x] = upper * (1 - down + top) + lower * (down - top);
    }
  }
  return out;
}
