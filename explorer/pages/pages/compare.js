import { h } from "../dom.js";

export async function comparePage() {
  return { element: h("p", null, "Not written yet."), title: "compare" };
}
