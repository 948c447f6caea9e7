// Conditions on columns, as addresses and resources write them: `frequency>0.01;dead=false;name~red`.
// `~` is for text, and means that it contains the value, in capitals or not.

// [{column, op, value}] of a text; what is no condition is left out.
export function parseWhere(text) {
  const conditions = [];
  for (const piece of String(text || "")
    .split(";")
    .map((part) => part.trim())
    .filter(Boolean)) {
    const match = /^([A-Za-z_][\w.]*)\s*(<=|>=|!=|<|>|=|~)\s*(.*)$/.exec(piece);
    if (match) conditions.push({ column: match[1], op: match[2], value: match[3].trim() });
  }
  return conditions;
}

export function writeWhere(conditions) {
  return conditions.map(({ column, op, value }) => `${column}${op}${value}`).join(";");
}

// What of a text is no condition, or null: to be told to the person who wrote it.
export function faultOf(text, names) {
  for (const piece of String(text || "")
    .split(";")
    .map((part) => part.trim())
    .filter(Boolean)) {
    const [condition] = parseWhere(piece);
    if (!condition) return `${piece}: not of the form COLUMN OPERATOR VALUE, such as frequency>0.01.`;
    if (!names.includes(condition.column)) return `${condition.column}: no column of that name.`;
    if (condition.value === "") return `${piece}: the value is missing.`;
  }
  return null;
}

function valueOf(text) {
  if (text === "null") return null;
  if (text === "true" || text === "false") return text === "true";
  const value = Number(text);
  return text !== "" && Number.isFinite(value) ? value : text;
}

function test(op, value) {
  if (value === null) return op === "=" ? (v) => v === null : (v) => op === "!=" && v !== null;
  if (typeof value === "string") {
    const like = value.toLowerCase();
    if (op === "~") return (v) => v !== null && String(v).toLowerCase().includes(like);
    if (op === "=") return (v) => v === value;
    return op === "!=" ? (v) => v !== null && v !== value : () => false;
  }
  const plain = (v) => (typeof v === "boolean" ? Number(v) : v);
  const right = plain(value);
  return {
    "~": (v) => v !== null && String(v).includes(String(value)),
    "<": (v) => v !== null && plain(v) < right,
    "<=": (v) => v !== null && plain(v) <= right,
    ">": (v) => v !== null && plain(v) > right,
    ">=": (v) => v !== null && plain(v) >= right,
    "=": (v) => v !== null && plain(v) === right,
    "!=": (v) => v !== null && plain(v) !== right,
  }[op];
}

// 1 for each row that all conditions hold for; `columns` maps a name to its values.
export function holding(conditions, columns, n) {
  const lit = new Uint8Array(n).fill(1);
  for (const { column, op, value } of conditions) {
    const passes = test(op, valueOf(value));
    const values = columns[column];
    for (let i = 0; i < n; i++) if (lit[i] && !passes(values[i])) lit[i] = 0;
  }
  return lit;
}
