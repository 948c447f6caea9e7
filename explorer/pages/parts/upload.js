// Own images: chosen, dropped or pasted, sent to the server, and opened.

import { go } from "../address.js";
import { fill, h, say } from "../dom.js";
import { isReport, post } from "../source.js";
import { note, wrong } from "./states.js";

// {element, close}. Takes pictures that are dropped on the page or pasted, until it is closed.
export function uploader(view) {
  if (isReport())
    return {
      element: note("A report shows the images it holds. `patchsae explore` takes your own."),
      close: () => null,
    };
  const state = h("div", { "aria-live": "polite" });
  const file = h("input", {
    type: "file",
    accept: "image/*",
    class: "unseen",
    id: "upload",
    tabindex: "-1",
    "aria-label": "Picture to look at",
    onchange: () => file.files[0] && send(file.files[0]),
  });
  const button = h(
    "button",
    { type: "button", class: "primary", onclick: () => file.click() },
    "Open a picture",
  );

  async function send(blob) {
    fill(state, note("The picture is sent to the server on this machine."));
    button.disabled = true;
    try {
      const { id } = await post(`upload/${view.key}`, blob);
      fill(state);
      say("The picture is there.");
      go(["v", view.key, "upload", id]);
    } catch (error) {
      fill(state, wrong(error));
    } finally {
      button.disabled = false;
      file.value = "";
    }
  }

  const pictures = (items) => [...(items || [])].find((one) => one.type.startsWith("image/"));
  const over = (event) => {
    event.preventDefault();
    document.body.classList.add("drop-here");
  };
  const leave = () => document.body.classList.remove("drop-here");
  const drop = (event) => {
    event.preventDefault();
    leave();
    const picture = pictures(event.dataTransfer.files) || event.dataTransfer.files[0];
    if (picture) send(picture);
  };
  const paste = (event) => {
    const picture = pictures(event.clipboardData && event.clipboardData.files);
    if (!picture) return;
    event.preventDefault();
    send(picture);
  };
  const listeners = [
    ["dragover", over],
    ["dragleave", leave],
    ["drop", drop],
    ["paste", paste],
  ];
  for (const [name, action] of listeners) document.addEventListener(name, action);
  return {
    element: h(
      "div",
      { class: "row", data: { role: "upload" } },
      button,
      file,
      h("span", { class: "soft small" }, "or drop one here, or paste one from the clipboard"),
      state,
    ),
    close() {
      leave();
      for (const [name, action] of listeners) document.removeEventListener(name, action);
    },
  };
}
