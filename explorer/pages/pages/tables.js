// Tables: every table of the store with the meaning of its columns, and SQL over them.

import { change, here } from "../address.js";
import { fill, h, say } from "../dom.js";
import { count, number, whole } from "../format.js";
import { onPage } from "../keys.js";
import { select, table } from "../parts/controls.js";
import { empty, note, pageHead, panel, prose, waiting, wrong } from "../parts/states.js";
import { downloadOf, get, isReport } from "../source.js";
import { homeNow } from "../state.js";

function tableList(tables, insert) {
  const body = h("div", { class: "stack" });
  const draw = (text) => {
    const like = text.toLowerCase();
    const left = tables.filter(
      (one) =>
        one.name.includes(like) || one.columns.some((column) => column.name.toLowerCase().includes(like)),
    );
    fill(
      body,
      left.map((one) =>
        h(
          "details",
          { open: Boolean(like) && left.length < 4, data: { table: one.name } },
          h(
            "summary",
            null,
            h("strong", { class: "mono" }, one.name),
            h(
              "span",
              { class: "soft small" },
              ` ${count(one.columns.length, "column")}`,
              one.n_artifacts === null ? null : `, ${count(one.n_artifacts, "artifact")}`,
            ),
          ),
          one.description ? note(one.description) : null,
          insert
            ? h(
                "p",
                null,
                h(
                  "button",
                  { type: "button", onclick: () => insert(`SELECT * FROM ${one.name} LIMIT 100`) },
                  "Look into it",
                ),
              )
            : null,
          h(
            "dl",
            { class: "small" },
            one.columns.map((column) => [
              h(
                "dt",
                null,
                h("span", { class: "mono" }, column.name),
                h("span", { class: "soft" }, ` ${column.type}`),
              ),
              h("dd", { class: "soft" }, column.sentence),
            ]),
          ),
        ),
      ),
      left.length ? null : note("No table and no column is called that."),
    );
  };
  draw("");
  return panel(
    h("header", null, h("h2", null, "Tables"), h("span", { class: "soft" }, whole(tables.length))),
    null,
    h("input", {
      type: "search",
      placeholder: "Find a table or column",
      "aria-label": "Find a table or column",
      oninput: (event) => draw(event.target.value),
    }),
    h("br"),
    h("br"),
    body,
  );
}

// Whole numbers may be ids, so they stand without separators.
function textOf(value) {
  if (Number.isInteger(value)) return String(value);
  return typeof value === "object" && value !== null ? JSON.stringify(value) : number(value);
}

function resultPanel(answer, query) {
  const numeric = answer.types.map((type) => /int|float|decimal/i.test(type));
  const shown = answer.rows.map((row) => row.map((value) => textOf(value)));
  const download = (kind, text) =>
    h(
      "a",
      { class: "button", href: downloadOf(kind, query.sql, query.experiment), download: `patchsae.${kind}` },
      text,
    );
  say(`${count(answer.n_rows, "row")}.`);
  return panel(
    h(
      "header",
      null,
      h("h2", null, "Result"),
      h(
        "span",
        { class: "soft" },
        answer.truncated
          ? `the first ${whole(answer.rows.length)} of ${count(answer.n_rows, "row")}`
          : count(answer.n_rows, "row"),
      ),
      h("span", { class: "gap" }),
      download("csv", "CSV"),
      download("parquet", "Parquet"),
    ),
    { data: { role: "result" } },
    answer.rows.length
      ? h(
          "div",
          { class: "result" },
          table(
            "Result of the query",
            answer.columns.map((name, i) => ({
              name,
              text: name,
              title: answer.types[i],
              number: numeric[i],
            })),
            shown,
          ),
        )
      : note("The query gives no rows."),
  );
}

export async function tablesPage(_, firstQuery) {
  const { tables } = await get("tables");
  if (isReport()) {
    return {
      title: "Tables",
      element: h(
        "div",
        { class: "stack" },
        h("h1", null, "Tables"),
        note(
          "A report has no server to ask. `patchsae explore` runs SQL over the store, and `patchsae " +
            "query` on the command line.",
        ),
        tableList(tables, null),
      ),
    };
  }
  const result = h("div", { "aria-live": "polite" });
  let turn = 0;
  let asked = null;
  const box = h("textarea", {
    class: "sql",
    id: "sql",
    spellcheck: "false",
    autocapitalize: "off",
    "aria-label": "SQL",
    placeholder: "SELECT sae, count(*) AS n FROM latents WHERE dead GROUP BY sae",
    onkeydown: (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      run();
    },
  });

  function run() {
    const sql = box.value.trim();
    if (sql === (here().query.sql || "") && sql) ask(here().query);
    else change({ sql });
  }

  async function ask(query) {
    const mine = ++turn;
    asked = `${query.sql}\n${query.experiment || ""}`;
    if (!query.sql) {
      fill(
        result,
        empty(
          "Write a query, or look into one of the tables.",
          "Ctrl+Enter runs it, and its address can be sent to others.",
        ),
      );
      return;
    }
    fill(result, waiting("The query runs"));
    try {
      const answer = await get("sql", { q: query.sql, experiment: query.experiment }, true);
      if (mine === turn) fill(result, resultPanel(answer, query));
    } catch (error) {
      if (mine === turn) fill(result, wrong(error));
    }
  }

  const experiments = homeNow() ? homeNow().experiments : [];
  const update = (query) => {
    if (document.activeElement !== box || !box.value) box.value = query.sql || "";
    if (`${query.sql}\n${query.experiment || ""}` !== asked) ask(query);
  };
  onPage(["e"], "edit the query", () => box.focus());
  update(firstQuery);
  const insert = (sql) => {
    box.value = sql;
    run();
  };
  return {
    title: "Tables",
    element: h(
      "div",
      { class: "stack" },
      pageHead(
        "Tables",
        prose(
          "SQL over every table of the store. Columns such as `sae`, `dataset` and `backbone` " +
            "are added to each.",
        ),
      ),
      h(
        "div",
        { class: "split" },
        h(
          "div",
          { class: "stack" },
          panel(
            "Query",
            null,
            box,
            h(
              "div",
              { class: "row" },
              h("button", { type: "button", class: "primary", onclick: run }, "Run"),
              h("span", { class: "soft small" }, h("kbd", null, "Ctrl"), " ", h("kbd", null, "Enter")),
              experiments.length > 1
                ? select(
                    "experiment",
                    [["", "all"], ...experiments.map((one) => [one.name, one.name])],
                    firstQuery.experiment || "",
                    (value) => change({ experiment: value }),
                  )
                : null,
            ),
          ),
          result,
        ),
        tableList(tables, insert),
      ),
    ),
    update,
  };
}
