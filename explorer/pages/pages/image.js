import { h } from "../dom.js";

export async function imagePage() {
  return { element: h("p", null, "Not written yet."), title: "image" };
}
