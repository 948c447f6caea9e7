import { h } from "../dom.js";

export async function imagesPage() {
  return { element: h("p", null, "Not written yet."), title: "images" };
}
