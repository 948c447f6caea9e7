import { h } from "../dom.js";

export async function classesPage() {
  return { element: h("p", null, "Not written yet."), title: "classes" };
}
