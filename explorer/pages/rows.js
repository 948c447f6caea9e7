// Rows of the latents' table: from the server, which filters and sorts, or in a report from whole columns.

import { get, isReport } from "./source.js";
import { holding, parseWhere } from "./where.js";

// A column's values, one per latent.
export async function columnOfLatents(view, name) {
  return (await get(`latents/${view}/column/${name}`)).values;
}

async function columnsNamed(view, names) {
  const all = await Promise.all(names.map((name) => columnOfLatents(view, name)));
  return Object.fromEntries(names.map((name, i) => [name, all[i]]));
}

// 1 for each latent that conditions leave.
export async function litBy(view, where, n) {
  const conditions = parseWhere(where);
  if (!conditions.length) return null;
  return holding(conditions, await columnsNamed(view, [...new Set(conditions.map((one) => one.column))]), n);
}

async function computed(view, { where, sort, offset, limit, columns, class: chosen }) {
  const names = ["latent", ...columns.split(",").filter((name) => name && name !== "latent")];
  const by = (sort || "").replace(/^-/, "");
  const conditions = parseWhere(where);
  const own = (name) => name !== "latent" && !name.startsWith("class_");
  const needed = [...new Set([...names, by, ...conditions.map((one) => one.column)])].filter((name) => name && own(name));
  const values = await columnsNamed(view, needed);
  let latents = [...Array(values[needed[0]].length).keys()];
  values.latent = latents;
  if (chosen) {
    const of = (await get(`class/${view}/${chosen}`)).latents;
    const place = new Map(of.map((row) => [row.latent, row]));
    for (const name of ["n_images", "n_tokens", "mean_activation", "share"]) {
      values[`class_${name}`] = latents.map((latent) => place.get(latent)?.[name] ?? null);
      if (!names.includes(`class_${name}`)) names.push(`class_${name}`);
    }
  }
  const lit = holding(conditions, values, latents.length);
  const n = latents.length;
  latents = latents.filter((latent) => lit[latent] && (!chosen || values.class_n_images[latent] !== null));
  if (by && values[by]) {
    const sign = sort.startsWith("-") ? -1 : 1;
    const key = values[by];
    latents.sort((a, b) => {
      if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null) || a - b;
      return sign * (key[a] < key[b] ? -1 : key[a] > key[b] ? 1 : 0) || a - b;
    });
  }
  const rows = latents.slice(offset, offset + limit).map((latent) => names.map((name) => values[name]?.[latent] ?? null));
  return { n_latents: n, n_matched: latents.length, columns: names, rows };
}

// {n_latents, n_matched, columns, rows}. `query`: {where, sort, offset, limit, columns, class, words}.
export function latentRows(view, query) {
  return isReport() ? computed(view, query) : get(`latents/${view}/rows`, query);
}
