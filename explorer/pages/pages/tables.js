import { h } from "../dom.js";

export async function tablesPage() {
  return { element: h("p", null, "Not written yet."), title: "tables" };
}
