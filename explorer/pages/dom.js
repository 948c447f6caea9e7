// Makes elements without HTML strings: what comes from a store is text and never markup.

const SVG = "http://www.w3.org/2000/svg";

function dress(element, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "css") for (const key of Object.keys(value)) element.style.setProperty(key, value[key]);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

// An HTML element: h("a", {class: "x", href, onclick, data: {latent: 3}, css: {width: "3px"}}, "text",
// other).
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  dress(element, attributes);
  add(element, children);
  return element;
}

// The same for SVG.
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  dress(element, attributes);
  add(element, children);
  return element;
}

// Puts children in the place of all that an element holds.
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

// Tells a screen reader what changed.
export function say(sentence) {
  const place = document.getElementById("said");
  if (place && place.textContent !== sentence) place.textContent = sentence;
}

// Calls `action` once, `wait` milliseconds after the last call; what it returns has `cancel`.
export function later(action, wait) {
  let timer = 0;
  const call = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

// Whether the reader asked for little motion.
export function still() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

// What the browser remembers between visits; files opened from a disk may not remember anything.
export function remembered(name, otherwise) {
  try {
    return localStorage.getItem(`patchsae ${name}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`patchsae ${name}`, value);
  } catch {
    // Then the choice lasts as long as the page.
  }
}
