// What several pages need to know: the store's contents and a view's head.

import { get } from "./source.js";

let latest = null;

// The resource `home`, asked for once unless `fresh`.
export async function home(fresh) {
  latest = await get("home", null, fresh);
  return latest;
}

// What `home` said last, without waiting; null before it did.
export function homeNow() {
  return latest;
}

// The resource `view/VIEW`.
export function viewOf(key) {
  return get(`view/${key}`);
}

export async function classesOf(key) {
  return (await get(`classes/${key}`)).classes;
}

// The column of a view by its name, or null.
export function columnOf(view, name) {
  return view.columns.find((column) => column.name === name) || null;
}
