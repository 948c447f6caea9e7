import { h } from "../dom.js";

export async function comparisonsPage() {
  return { element: h("p", null, "Not written yet."), title: "comparisons" };
}
