// One of the two result lists: it shows an answer, a problem, or a hint.

import { element, fixed, percent } from "./dom.js";

const FALLBACKS = {
  cold_start: "the history holds no known item",
  engine_failed: "the model failed",
  engine_unavailable: "the model is not there",
  deadline_exceeded: "the model did not answer in time",
};
const SCORES = {
  pool: "Score: sum of signals, in nats; percentage and bar: probability that the person takes it.",
  beam: "Score: log-probability; bar: relative to the first.",
  popularity: "Score: logarithm of the share of all interactions; bar: relative to the first.",
};
const STAGES = ["history", "tokenise", "pool", "queue", "prefill", "decode", "head", "trie", "explain", "total"];

/**
 * root: the section of the list.
 * choose(item): called with the selected item.
 * name(item_id): returns the title of a history item.
 */
export function pane(root, { choose, name }) {
  const state = root.querySelector(".state");
  const body = root.querySelector(".body");
  const curl = root.querySelector(".curl");
  const command = curl.querySelector("pre");
  const copy = curl.querySelector("button");

  copy.addEventListener("click", async () => {
    getSelection().selectAllChildren(command);
    const copied = await navigator.clipboard?.writeText(command.textContent).then(() => true, () => false);
    copy.textContent = copied ? "Copied" : "Selected: press Ctrl+C"; // plain HTTP has no clipboard
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });

  function settle(text, ...content) {
    root.setAttribute("aria-busy", "false");
    root.classList.remove("hinted");
    state.textContent = text;
    body.replaceChildren(...content.filter((part) => part !== null));
  }

  return {
    busy(line) {
      root.setAttribute("aria-busy", "true");
      root.classList.remove("hinted");
      command.textContent = line;
      curl.hidden = false;
    },
    hint(text) {
      curl.hidden = true;
      settle("", element("p", { className: "muted" }, text));
      root.classList.add("hinted");
    },
    fail(problem) {
      settle("", problemBox(problem));
    },
    show(answer, history) {
      const items = `${answer.items.length} ${answer.items.length === 1 ? "item" : "items"}`;
      const cached = `${answer.cached_tokens} cached ${answer.cached_tokens === 1 ? "token" : "tokens"}`;
      settle(
        `${items} · ${fixed(answer.timings_ms.total, 1)} ms · ${cached}`,
        answer.items.length ? table(answer, history, choose) : null,
        notes(answer),
        answer.explanation && explanation(answer, name),
        timings(answer.timings_ms),
      );
    },
  };
}

export function problemBox(problem) {
  const errors = problem.errors.map(({ where, message }) =>
    element("li", {}, element("code", {}, where.replace(/^(body|query)\.?/, "") || where), `: ${message}`),
  );
  const about = [problem.status && `status ${problem.status}`, problem.request_id && `request ${problem.request_id}`];
  return element(
    "div",
    { className: "problem", role: "alert" },
    element("strong", {}, problem.title),
    element("p", {}, problem.detail),
    errors.length ? element("ul", {}, ...errors) : null,
    element("p", { className: "id" }, about.filter(Boolean).join(" · ")),
  );
}

function table({ items }, history, choose) {
  const known = new Set(history.map((entry) => entry.item_id));
  const rows = items.map((item) => {
    const title = element("button", { type: "button", className: "title" }, item.title);
    title.addEventListener("click", () => choose(item));
    const popular = item.source === "popularity";
    const share = item.relevance === null ? Math.exp(item.score - items[0].score) : item.relevance;
    return element(
      "tr",
      {},
      element("td", { className: "rank" }, String(item.rank)),
      element(
        "td",
        {},
        title,
        element("span", { className: "id" }, item.item_id),
        known.has(item.item_id) ? element("span", { className: "tag" }, "in history") : null,
      ),
      element("td", { className: "score" }, fixed(item.score), item.relevance === null ? null : element("span", { className: "id" }, percent(item.relevance)), bar(share)),
      element("td", { className: "source" }, element("span", { className: popular ? "tag loud" : "" }, item.source)),
    );
  });
  const head = ["#", "Item", "Score", "Source"].map((name) => element("th", { scope: "col" }, name));
  return element(
    "table",
    { className: "items" },
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}

/** share: part of the whole width, 0 to 1. */
function bar(share) {
  const filled = element("span", {});
  filled.style.width = `${100 * Math.min(share, 1)}%`;
  return element("span", { className: "bar", "aria-hidden": "true" }, filled);
}

function notes({ items, ranking, fallback, fewer_than_limit, dropped }) {
  const told = [];
  if (fallback) told.push(`Popular items instead of the model's: ${FALLBACKS[fallback] ?? fallback}.`);
  if (fewer_than_limit) told.push(`Fewer than asked for: ${fewer_than_limit}.`);
  if (dropped.unknown_count) told.push(`Unknown items in the history, not read: ${dropped.unknown_count}.`);
  if (dropped.old_events) told.push(`Old items of the history, beyond what the model reads: ${dropped.old_events}.`);
  if (dropped.new_events) told.push(`Items of the history that are newer than the model, not read by it: ${dropped.new_events}.`);
  if (items.length) told.push(`${SCORES[ranking] ?? SCORES.popularity} Select an item to add it.`);
  return element("ul", { className: "notes" }, ...told.map((text) => element("li", {}, text)));
}

function explanation({ explanation: { signals, history, unexplained }, items }, name) {
  const strongest = Math.max(...history.map(({ effect }) => Math.abs(effect)), 1e-9);
  const rows = history.map(({ item_id, effect }) => {
    const filled = element("span", { className: effect < 0 ? "against" : "for" });
    filled.style.width = `${(50 * Math.abs(effect)) / strongest}%`;
    const sign = effect < 0 ? "" : "+";
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name(item_id)),
      element("td", { className: "score" }, sign + fixed(effect)),
      element("td", { "aria-hidden": "true" }, element("span", { className: "effect" }, filled)),
    );
  });
  const more = unexplained ? ` ${unexplained} older items were read, too.` : "";
  return element(
    "section",
    { className: "explanation" },
    element("h3", {}, `What mattered for “${items[0].title}”`),
    element("table", {}, element("tbody", {}, ...rows)),
    signals && element("p", { className: "hint" }, `Signals: ${sumOf(signals)}.`),
    element("p", { className: "hint" }, `Nats that its score loses without the item.${more}`),
  );
}

/** Return the signals that gave something, strongest first. */
function sumOf(signals) {
  const given = Object.entries(signals).filter(([, value]) => Math.abs(value) >= 0.005);
  given.sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
  return given.map(([signal, value]) => `${signal} ${fixed(value)}`).join(", ") || "none";
}

function timings(milliseconds) {
  const cells = STAGES.map((stage) =>
    element("div", {}, element("dt", {}, stage), element("dd", {}, fixed(milliseconds[stage], 1))),
  );
  return element(
    "section",
    {},
    element("h3", {}, "Milliseconds by stage"),
    element("dl", { className: "timings" }, ...cells),
  );
}
