// What the model predicts for an image, and what it predicts with latents switched off or set to a value.

import { change } from "../address.js";
import { fill, h, later, say } from "../dom.js";
import { barList } from "../draw/bars.js";
import { writeTokens, parseTokens } from "../draw/geometry.js";
import { number, percent } from "../format.js";
import { isReport, post } from "../source.js";
import { choice } from "./controls.js";
import { note, panel, waiting, wrong } from "./states.js";

const SHOWN = 8;

// "12:0,77:2.5@3.5-9" -> [{latent, value, tokens}]; tokens are null for all, and runs are joined by dots.
export function parseEdits(text) {
  const edits = [];
  for (const piece of String(text || "").split(",")) {
    const match = /^(\d+):(-?[\d.]+(?:e-?\d+)?)(?:@([\d.-]+))?$/.exec(piece);
    if (match && Number.isFinite(Number(match[2]))) {
      edits.push({
        latent: Number(match[1]),
        value: Number(match[2]),
        tokens: match[3] ? parseTokens(match[3].replace(/\./g, ","), 100000) : null,
      });
    }
  }
  return edits;
}

export function writeEdits(edits) {
  return edits
    .map(
      (one) =>
        `${one.latent}:${Number(one.value.toPrecision(5))}` +
        (one.tokens ? `@${writeTokens(one.tokens).replace(/,/g, ".")}` : ""),
    )
    .join(",");
}

function bars(before, after) {
  const was = new Map(before.map((one) => [one.class, one.p]));
  const shown = (after || before).slice(0, SHOWN);
  for (const one of before.slice(0, 2)) {
    if (!shown.some((other) => other.class === one.class)) shown.push({ ...one, p: null });
  }
  return barList(
    shown.map((one) => ({
      name: one.name,
      value: one.p ?? 0,
      before: after ? (was.get(one.class) ?? 0) : undefined,
      text: one.p === null ? "< last" : percent(one.p),
      data: { class: one.class },
      title: after
        ? `${one.name}: ${percent(was.get(one.class) ?? 0)} before, ` +
          `${one.p === null ? "below the others" : percent(one.p)} after`
        : `${one.name}: ${percent(one.p)}, logit ${number(one.logit)}`,
    })),
    1,
  );
}

// {element, possible, set(edits, error)}. `subject` is {image} or {upload}; `code()` is the image's code or
// null, `tokens()` the chosen tokens.
export function predictionPanel(view, image, subject, code, tokens) {
  const known = image.prediction && image.prediction.length;
  if (!known) {
    const why =
      image.prediction_why && image.prediction_why !== image.problem ? note(image.prediction_why) : null;
    return { element: why ? panel("Prediction", null, why) : null, possible: false, set: () => null };
  }
  const possible = !isReport();
  const body = h(
    "div",
    { "aria-live": "polite", data: { role: "prediction" } },
    bars(image.prediction, null),
  );
  const verdict = h("p", { class: "small", data: { role: "verdict" } });
  const editors = h("div");
  const tools = h("div", { class: "row" });
  const kept = choice(
    "What the SAE leaves of a token",
    [
      ["kept", "keep the SAE's error"],
      ["dropped", "drop it"],
    ],
    "kept",
    (value) => change({ error: value === "kept" ? null : value }, true),
  );
  let turn = 0;
  let now = "";

  const ask = later(async (edits, error) => {
    const mine = ++turn;
    try {
      const answer = await post(`predict/${view.key}`, { ...subject, edits, error });
      if (mine !== turn) return;
      const [first, then] = [answer.before[0], answer.after[0]];
      fill(body, bars(answer.before, answer.after));
      body.dataset.flipped = String(Boolean(answer.flipped));
      fill(
        verdict,
        answer.flipped
          ? [
              h("span", { class: "badge warn" }, "changed"),
              ` ${first.name} (${percent(first.p)}) becomes ${then.name} (${percent(then.p)}).`,
            ]
          : [
              h("span", { class: "badge good" }, "the same"),
              ` ${then.name}: ${percent(first.p)} before, ${percent(then.p)} after.`,
            ],
      );
      say(verdict.textContent);
    } catch (problem) {
      if (mine === turn) fill(body, wrong(problem));
    }
  }, 160);

  function put(edits, one, values) {
    change(
      { edits: writeEdits(edits.map((other) => (other === one ? { ...one, ...values } : other))) },
      true,
    );
  }

  function editor(edits, one) {
    const values = code() ? code().map(one.latent) : null;
    const most = values ? Math.max(...values) : 0;
    const top = Math.max(2 * most, 1, one.value);
    const box = h("input", {
      type: "number",
      step: "any",
      value: one.value,
      id: `value-${one.latent}`,
      "aria-label": `Value of latent ${one.latent}`,
      onchange: () => {
        const value = Number(box.value);
        if (Number.isFinite(value)) put(edits, one, { value });
      },
    });
    const slider = h("input", {
      type: "range",
      min: 0,
      max: top,
      step: top / 200,
      value: one.value,
      "aria-label": `Value of latent ${one.latent}, from 0 to ${number(top, 3)}`,
      id: `slide-${one.latent}`,
      oninput: () => {
        box.value = Number(slider.value).toPrecision(3);
        put(edits, one, { value: Number(slider.value) });
      },
    });
    const region = tokens();
    return h(
      "div",
      { class: "edit", data: { latent: one.latent } },
      h(
        "div",
        null,
        h("strong", null, `Latent ${one.latent}`),
        h(
          "span",
          { class: "soft small" },
          ` ${one.tokens ? `on tokens ${writeTokens(one.tokens)}` : "on every token"}; here at most ` +
            `${number(most, 3)}`,
        ),
      ),
      h(
        "div",
        { class: "row" },
        one.tokens
          ? h(
              "button",
              { type: "button", class: "plain", onclick: () => put(edits, one, { tokens: null }) },
              "all tokens",
            )
          : region.length
            ? h(
                "button",
                { type: "button", class: "plain", onclick: () => put(edits, one, { tokens: region }) },
                "chosen tokens only",
              )
            : null,
        h(
          "button",
          {
            type: "button",
            class: "plain",
            "aria-label": `Forget the change of latent ${one.latent}`,
            onclick: () => change({ edits: writeEdits(edits.filter((other) => other !== one)) }, true),
          },
          "×",
        ),
      ),
      slider,
      h(
        "div",
        { class: "row" },
        box,
        h(
          "button",
          { type: "button", disabled: one.value === 0, onclick: () => put(edits, one, { value: 0 }) },
          "Off",
        ),
      ),
    );
  }

  function set(edits, error) {
    for (const button of kept.children)
      button.setAttribute("aria-pressed", String(button.dataset.value === error));
    const held = document.activeElement && document.activeElement.id;
    const dragging =
      held && held.startsWith("slide-") && editors.querySelectorAll(".edit").length === edits.length;
    if (!dragging)
      fill(
        editors,
        edits.map((one) => editor(edits, one)),
      );
    if (held && !dragging) document.getElementById(held)?.focus();
    fill(
      tools,
      edits.length
        ? [
            kept,
            h(
              "button",
              { type: "button", class: "plain", onclick: () => change({ edits: null, error: null }) },
              "Undo all",
            ),
          ]
        : null,
    );
    legend.hidden = !edits.length;
    const next = JSON.stringify([edits, error]);
    if (next === now) return;
    now = next;
    if (!edits.length) {
      turn += 1;
      ask.cancel();
      delete body.dataset.flipped;
      fill(body, bars(image.prediction, null));
      fill(
        verdict,
        possible
          ? note("Switch a latent off, or set its value, to see what it does to the prediction.")
          : note("Predictions with latents switched off need `patchsae explore`."),
      );
      return;
    }
    if (!body.hasChildNodes()) fill(body, waiting());
    if (possible) ask(edits, error);
  }

  const legend = h(
    "p",
    { class: "note", hidden: true },
    "Filled bars are after the change, outlined ones before.",
  );
  const element = panel(
    h(
      "header",
      null,
      h("h2", null, "Prediction"),
      h("span", { class: "soft" }, image.class_name ? `labelled ${image.class_name}` : ""),
    ),
    { data: { role: "prediction-panel" } },
    verdict,
    body,
    legend,
    editors,
    tools,
  );
  return { element, possible, set };
}
