// One image, of the data set or one's own: its latents as maps, those of a patch or region, and the
// prediction.

import { change, go, makeAddress } from "../address.js";
import { fill, h, later } from "../dom.js";
import { codeOf } from "../draw/codes.js";
import { parseTokens, tokenCount, writeTokens } from "../draw/geometry.js";
import { MAP_MODES } from "../draw/map.js";
import { count, number, tokenName } from "../format.js";
import { onPage } from "../keys.js";
import { choice, pairs } from "../parts/controls.js";
import { chip } from "../parts/filters.js";
import { picture } from "../parts/picture.js";
import { predictionPanel, parseEdits, writeEdits } from "../parts/prediction.js";
import { note, pageHead, panel, wrong } from "../parts/states.js";
import { uploader } from "../parts/upload.js";
import { get, pictureOf, truthOf, uploadOf } from "../source.js";
import { conceptList } from "../parts/concepts.js";

const MOST = 40;

function idsOf(text) {
  return String(text || "")
    .split(",")
    .filter((piece) => /^\d+$/.test(piece))
    .map(Number);
}

function regionName(layout, tokens) {
  if (tokens.length === 1) return tokenName(layout, tokens[0]);
  return `${tokens.length} tokens`;
}

export async function imagePage({ image: row, upload: id }, firstQuery, view) {
  const own = id !== undefined;
  const image = await get(own ? `upload/${view.key}/${id}` : `image/${view.key}/${row}`);
  const layout = image.layout || view.layout;
  const source = (size) => (own ? uploadOf(id, size) : pictureOf(view, image.image, size));
  const name = own ? "Your image" : `Image ${image.image}`;
  let query = firstQuery;
  let code = null;
  let pointed = null;
  const list = h("div", {
    class: "concept-list",
    tabindex: "0",
    role: "region",
    "aria-label": "Latents of the image",
  });
  const listTitle = h("h2");
  const listTools = h("div", { class: "chips" });
  const shownMap = h("p", { class: "note", "aria-live": "polite" });

  const big = picture(image, layout, source(640), {
    name,
    choose: (tokens) => change({ tokens: writeTokens(tokens) }, true),
  });
  const edit = (latent) => {
    const edits = parseEdits(query.edits).filter((one) => one.latent !== latent);
    change({ edits: writeEdits([...edits, { latent, value: 0, tokens: null }]) });
  };
  const prediction = predictionPanel(
    view,
    image,
    own ? { upload: id } : { image: image.image },
    () => code,
    () => tokensNow(),
  );

  function tokensNow() {
    return layout ? parseTokens(query.tokens, tokenCount(layout)) : [];
  }

  function paint() {
    const pinned = idsOf(query.latents);
    const latent = pointed ?? pinned[pinned.length - 1] ?? null;
    const values = latent !== null && code ? code.map(latent) : null;
    const max = values ? Math.max(...values) : 0;
    big.set({ values, max, mode: query.map || "heat", tokens: tokensNow() });
    shownMap.textContent =
      latent === null
        ? "Point at a latent to see its map; click or drag over patches to see the latents there."
        : `Map of latent ${latent}: at most ${number(max)}${max > 0 ? "" : ", it does not fire here"}.`;
  }

  const point = later((latent) => {
    pointed = latent;
    paint();
  }, 40);

  function pin(latent) {
    const pinned = idsOf(query.latents);
    change(
      {
        latents: (pinned.includes(latent)
          ? pinned.filter((one) => one !== latent)
          : [...pinned, latent]
        ).join(","),
      },
      true,
    );
  }

  let drawn = "";
  function drawList() {
    const state = `${query.tokens} ${query.latents} ${code !== null}`;
    if (state === drawn) return;
    drawn = state;
    if (image.problem) return;
    const tokens = tokensNow();
    const pinned = idsOf(query.latents);
    let rows = image.latents.map((one) => ({ ...one }));
    if (tokens.length && code) rows = code.latentsOf(tokens);
    else if (code) {
      const there = new Set(rows.map((one) => one.latent));
      const rest = pinned
        .filter((latent) => !there.has(latent))
        .map((latent) => {
          const values = code.map(latent);
          const token = values.indexOf(Math.max(...values));
          return {
            latent,
            activation: values.reduce((a, b) => a + b, 0) / values.length,
            token,
            token_activation: values[token],
          };
        });
      rows = [...rest, ...rows];
    }
    fill(
      listTitle,
      tokens.length ? `Latents at ${regionName(layout, tokens)}` : "Top latents",
      h(
        "span",
        { class: "soft" },
        tokens.length
          ? ` ${count(rows.length, "latent")}, by their mean there`
          : " by their mean over the tokens",
      ),
    );
    fill(
      listTools,
      tokens.length ? chip(`tokens ${writeTokens(tokens)}`, () => change({ tokens: null }, true)) : null,
      pinned.map((latent) => chip(`map of ${latent}`, () => pin(latent))),
    );
    const act = { pin, point, edit: prediction.possible ? edit : null };
    fill(
      list,
      rows.length
        ? conceptList({ ...view, layout }, image, source, rows.slice(0, MOST), code, pinned, act)
        : note("No latent fires there."),
      code && code.left
        ? note(
            `The ${count(code.left, "weakest entry", "weakest entries")} of the code ` +
              `${code.left === 1 ? "is" : "are"} left out.`,
          )
        : null,
    );
  }

  if (image.problem) fill(list, note(image.problem));
  else
    get(own ? `upload-codes/${view.key}/${id}` : `codes/${view.key}/${image.image}`).then(
      (answer) => {
        code = codeOf(answer, layout);
        update(query);
      },
      (error) => fill(list, wrong(error)),
    );

  const truth = image.truth
    ? h(
        "label",
        null,
        h("input", {
          type: "checkbox",
          checked: query.truth === "1",
          id: "truth",
          onchange: (event) => change({ truth: event.target.checked ? "1" : null }, true),
        }),
        "Ground truth",
      )
    : null;
  const upload = uploader(view);
  const attributes = (image.attributes || []).map((one) => [one.attribute, one.value]);
  const to = (other) =>
    makeAddress(["v", view.key, "image", other], { latents: query.latents, map: query.map });
  const step = (other, sign, text) => h("a", { class: "button", href: to(other), "aria-label": text }, sign);
  if (!own) {
    onPage(
      ["ArrowRight", "j"],
      "next image",
      () => go(["v", view.key, "image", image.image + 1], { latents: query.latents, map: query.map }),
      { ArrowRight: "→" },
    );
    onPage(
      ["ArrowLeft", "k"],
      "previous image",
      () =>
        image.image > 0 &&
        go(["v", view.key, "image", image.image - 1], { latents: query.latents, map: query.map }),
      { ArrowLeft: "←" },
    );
  }
  const modes = choice("Map", MAP_MODES, query.map || "heat", (mode) =>
    change({ map: mode === "heat" ? null : mode }, true),
  );
  function update(next) {
    query = next;
    big.overlay(query.truth === "1" ? truthOf(view, image.image) : null);
    drawList();
    paint();
    prediction.set(parseEdits(query.edits), query.error === "dropped" ? "dropped" : "kept");
    for (const button of modes.children)
      button.setAttribute("aria-pressed", String(button.dataset.value === (query.map || "heat")));
  }
  update(firstQuery);
  const classes = (image.classes || []).map((one) => (typeof one === "object" ? one.name : one)).join(", ");
  return {
    title: name,
    element: h(
      "div",
      { class: "stack" },
      pageHead(
        name,
        [classes || image.class_name, image.split, image.source].filter(Boolean).join(" · "),
        own || image.image === 0 ? null : step(image.image - 1, "←", "Previous image"),
        own ? null : step(image.image + 1, "→", "Next image"),
      ),
      upload.element,
      h(
        "div",
        { class: "split wide" },
        h(
          "div",
          { class: "stack" },
          panel(
            h(
              "header",
              null,
              h("h2", null, "Picture"),
              h("span", { class: "soft" }, `${image.width} × ${image.height}`),
              h("span", { class: "gap" }),
              truth,
              layout ? modes : null,
            ),
            { data: { role: "picture" } },
            big.element,
            shownMap,
            view.pictures === false && !own && view.pictures_why ? note(view.pictures_why) : null,
          ),
          prediction.element,
          attributes.length ? panel("What is known of it", null, pairs(attributes)) : null,
        ),
        panel(h("header", null, listTitle), { data: { role: "concepts" } }, listTools, list),
      ),
    ),
    update,
    close: upload.close,
  };
}
