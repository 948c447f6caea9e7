// Numbers and words as the pages write them.

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function whole(value) {
  return value === null || value === undefined ? "–" : WHOLE.format(value);
}

// A number with about four digits; what is missing is a dash.
export function number(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? WHOLE.format(value) : value.toExponential(3);
  const size = Math.abs(value);
  const kept = digits || 4;
  if (size >= 1e6 || size < 1e-4) return value.toExponential(Math.max(1, kept - 2));
  if (size >= 1000) return WHOLE.format(value);
  return String(Number(value.toPrecision(kept)));
}

export function percent(value, digits) {
  if (value === null || value === undefined) return "–";
  const least = 0.1 ** (digits === undefined ? 3 : digits + 2);
  if (value > 0 && value < least / 2) return `< ${100 * Number(least.toPrecision(1))} %`;
  return `${(100 * value).toFixed(digits === undefined ? 1 : digits)} %`;
}

// "1 image", "2 images", "no images".
export function count(n, thing, things) {
  return `${n === 0 ? "no" : whole(n)} ${n === 1 ? thing : things || `${thing}s`}`;
}

// A column's name as words: `label_entropy` -> "label entropy".
export function words(name) {
  return String(name).replace(/_/g, " ");
}

// A moment: "22 Nov 2026, 09:04".
export function moment(iso) {
  if (!iso) return "";
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return String(iso);
  return date.toLocaleString("en-GB", {
    day: "numeric",
    month: "short",
    year: "numeric",
    hour: "2-digit",
    minute: "2-digit",
  });
}

// The name of token t: "CLS", "row 3, column 5", "prompt 2".
export function tokenName(layout, token) {
  const [rows, columns] = layout.grid;
  const patch = token - layout.prefix;
  if (patch < 0) return (layout.prefix_names || [])[token] || `prefix ${token + 1}`;
  if (patch < rows * columns)
    return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  const after = patch - rows * columns;
  return (layout.suffix_names || [])[after] || `prompt ${after + 1}`;
}
