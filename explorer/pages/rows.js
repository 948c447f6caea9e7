// Rows of the latents' table: from the server, which filters and sorts, or in a report from whole columns.

import { get, isReport } from "./source.js";
import { holding, parseWhere } from "./where.js";

const OF_CLASS = ["n_images", "n_tokens", "mean_activation"];

// Names of the columns that a class and words add.
export function addedColumns({ class: chosen, words }) {
  return [...(words ? ["word_score"] : []), ...(chosen ? ["class_n_images", "class_mean_activation"] : [])];
}

// The conditions of a query; a class asks for latents that fire on it.
export function conditionsOf({ where, class: chosen }) {
  return parseWhere(where).concat(chosen ? [{ column: "class_n_images", op: ">", value: "0" }] : []);
}

async function ofClass(view, name, chosen) {
  const { n_latents: n } = await get(`view/${view}`);
  const values = new Array(n).fill(name === "class_mean_activation" ? null : 0);
  for (const row of (await get(`class/${view}/${chosen}`)).latents)
    values[row.latent] = row[name.replace("class_", "")];
  return values;
}

// A column's values, one per latent; `chosen` is a class for the columns class_*.
export async function columnOfLatents(view, name, chosen) {
  const added = OF_CLASS.includes(name.replace("class_", "")) && name.startsWith("class_");
  if (added && isReport()) return ofClass(view, name, chosen);
  return (await get(`latents/${view}/column/${name}`, added ? { class: chosen } : null)).values;
}

async function columnsNamed(view, names, chosen) {
  const all = await Promise.all(names.map((name) => columnOfLatents(view, name, chosen)));
  return Object.fromEntries(names.map((name, i) => [name, all[i]]));
}

// 1 for each latent that a query's conditions leave, or null if it has none.
export async function litBy(view, query, n) {
  const conditions = conditionsOf(query);
  if (!conditions.length) return null;
  const names = [...new Set(conditions.map((one) => one.column))].filter(
    (name) => name !== "latent" && name !== "word_score",
  );
  const columns = await columnsNamed(view, names, query.class);
  columns.latent = [...Array(n).keys()];
  return holding(
    conditions.filter((one) => columns[one.column]),
    columns,
    n,
  );
}

// Puts places into the order of a column's values; null is last.
function sortedBy(places, key, down) {
  const sign = down ? -1 : 1;
  return places.sort((a, b) => {
    if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null) || a - b;
    return sign * (key[a] < key[b] ? -1 : key[a] > key[b] ? 1 : 0) || a - b;
  });
}

async function computed(view, query, names) {
  const by = (query.sort || "").replace(/^-/, "");
  const conditions = conditionsOf(query);
  const needed = [...new Set([...names, by, ...conditions.map((one) => one.column)])].filter(
    (name) => name && name !== "latent",
  );
  const { n_latents: n } = await get(`view/${view}`);
  const values = await columnsNamed(view, needed, query.class);
  values.latent = [...Array(n).keys()];
  const lit = holding(conditions, values, n);
  const latents = values.latent.filter((latent) => lit[latent]);
  if (by) sortedBy(latents, values[by], query.sort.startsWith("-"));
  const rows = latents
    .slice(query.offset, query.offset + query.limit)
    .map((latent) => names.map((name) => values[name][latent]));
  return { n_latents: n, n_matched: latents.length, columns: names, rows };
}

// {n_latents, n_matched, columns, rows}. `query`: {where, sort, offset, limit, class, words}, `columns` a
// list of names.
export function latentRows(view, query, columns) {
  const names = [...new Set(["latent", ...addedColumns(query), ...columns])];
  if (isReport()) return computed(view, query, names);
  const where = conditionsOf(query)
    .map(({ column, op, value }) => `${column}${op}${value}`)
    .join(";");
  return get(`latents/${view}/rows`, { ...query, where, columns: names.join(",") });
}

// The same of one side of a matching. `query`: {side, where, sort, offset, limit}.
export async function matchingRows(key, query) {
  if (!isReport()) return get(`matching/${key}/rows`, query);
  const all = await get(`matching/${key}/rows/${query.side}`);
  const values = Object.fromEntries(all.columns.map((name, i) => [name, all.rows.map((row) => row[i])]));
  const lit = holding(parseWhere(query.where), values, all.rows.length);
  const places = all.rows.map((_, i) => i).filter((i) => lit[i]);
  const by = values[(query.sort || "").replace(/^-/, "")];
  if (by) sortedBy(places, by, query.sort.startsWith("-"));
  return {
    ...all,
    n_matched: places.length,
    rows: places.slice(query.offset, query.offset + query.limit).map((i) => all.rows[i]),
  };
}
