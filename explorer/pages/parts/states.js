// Waiting, empty and wrong: what a place shows while it has nothing else to show.

import { h, fill } from "../dom.js";
import { Problem } from "../source.js";

// A sentence with `commands` between back quotes set as code.
export function prose(sentence) {
  return sentence.split("`").map((piece, i) => (i % 2 ? h("code", null, piece) : piece));
}

export function waiting(what) {
  return h("div", { class: "waiting", role: "status" }, what || "Loading");
}

export function wrong(error) {
  if (!(error instanceof Problem)) console.error(error);
  const sentence = error instanceof Problem ? error.message : `This page has a fault: ${error.message}`;
  return h("p", { class: "wrong", role: "alert" }, prose(sentence));
}

export function empty(...sentences) {
  return h(
    "div",
    { class: "empty" },
    sentences.map((sentence) => h("p", null, prose(sentence))),
  );
}

export function note(sentence) {
  return h("p", { class: "note" }, prose(sentence));
}

// Shows that a place waits, then what `draw(value)` returns, or what is wrong. `absent` is drawn where the
// store has no such thing (404); without it the sentence of the server is.
export async function show(place, promise, draw, absent) {
  if (!place.hasChildNodes()) fill(place, waiting());
  try {
    const value = await promise;
    fill(place, draw(value));
  } catch (error) {
    fill(place, absent && error.status === 404 ? absent(error) : wrong(error));
  }
}

// A section with a heading that names it.
export function panel(title, attributes, ...children) {
  const heading = typeof title === "string" ? h("h2", null, title) : title;
  return h("section", { class: "panel", ...attributes }, heading, children);
}

// The head of a page: its title, a line about it, and what can be chosen there at the right.
export function pageHead(title, lead, ...actions) {
  return h(
    "div",
    { class: "head" },
    h("div", null, h("h1", null, title), h("p", { class: "lead" }, lead)),
    h("span", { class: "gap" }),
    h("div", { class: "row" }, actions),
  );
}
