import { h } from "../dom.js";

export async function classPage() {
  return { element: h("p", null, "Not written yet."), title: "class" };
}
