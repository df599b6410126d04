// The model card: the bundle's description.

import { element, fixed } from "./dom.js";

const FIGURES = ["loss", "hit@10", "ndcg@10"];
const TASKS = ["search", "recommendation"];

export function card(info) {
  const { training } = info;
  const rows = [
    ["Bundle", info.bundle_id],
    ["Made", info.created.replace("T", " ").slice(0, 16)],
    ["Index version", info.index_version],
    ["Items", info.items.toLocaleString("en")],
    ["Identifiers", `${info.scheme}, ${info.codebook_sizes.join(" × ")}`],
    ["Normalisation", info.normalisation],
    ["Reads", `${info.max_events - 1} history items, ${info.max_query_tokens} query tokens`],
    ["Data", info.data.name],
    ["Backbone", training.backbone],
    ["Method", training.method],
    ["Renewed from", training.renewed_from],
    ["Steps", training.steps?.toLocaleString("en")],
    ["Task conflict", typeof training.conflict === "number" ? fixed(training.conflict) : "not measured"],
    ["Server", `gems-sr ${info.version}`],
  ].filter(([, value]) => value !== undefined && value !== "");
  const pairs = rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
  return [element("dl", {}, ...pairs), ...validation(training.validation)];
}

function validation(figures) {
  const known = FIGURES.filter((figure) => TASKS.some((task) => typeof figures?.[`${task}.${figure}`] === "number"));
  if (!known.length) return [];
  const head = ["Validation", ...known].map((name) => element("th", { scope: "col" }, name));
  const rows = TASKS.map((task) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, task),
      ...known.map((figure) => {
        const value = figures[`${task}.${figure}`];
        return element("td", { className: "score" }, typeof value === "number" ? fixed(value, 3) : "–");
      }),
    ),
  );
  return [
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)),
    element("p", { className: "hint" }, "Conflict of the tasks' gradients: 0 aligned, 1 orthogonal, above 1 opposed."),
  ];
}
