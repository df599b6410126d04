// The page. The form is its state: every change sends a new request, and is written to the address so that it can be shared.

import { curl, findTitles, info, key, namedItems, Problem, rank } from "./api.js";
import { card } from "./card.js";
import { combobox } from "./combobox.js";
import { byId, debounced, element } from "./dom.js";
import { pane, problemBox } from "./results.js";

const PAUSE_MS = 300;
const NO_QUERY = "Type a query to search.";
const MAX_HISTORY = 100; // the most ids in one lookup
const CHECKS = ["explain"];
const OPTIONS = ["limit", "beam", "fallback", "filter"];
const TEXTS = ["query", "exclude", ...OPTIONS];

const form = byId("ask");
const titles = new Map(); // item id → title; null if there is no such item
let history = []; // entries in the format of the API
let served = null; // the answer of /info

const panes = Object.fromEntries(
  ["search", "recommend"].map((task) => [
    task,
    {
      asking: new AbortController(),
      ...pane(byId(task), {
        choose: (item) => add(item, task === "search" ? byId("query").value.trim() : ""),
        name: (id) => titles.get(id) ?? id,
      }),
    },
  ]),
);

// ---- history ----

function add(item, query = "") {
  titles.set(item.item_id, item.title);
  const entry = { item_id: item.item_id };
  if (query) Object.assign(entry, { behaviour: "search", query });
  history = [...history, entry].slice(-MAX_HISTORY);
  byId("announce").textContent = `${item.title} added to the history`;
  changed();
}

function removeAt(position) {
  history = history.filter((_, k) => k !== position);
  changed();
}

function drawChips() {
  const chips = history.map(({ item_id, query }, position) => {
    const known = titles.get(item_id) !== null;
    const title = titles.get(item_id) ?? item_id;
    const remove = element("button", { type: "button", "aria-label": `Remove ${title} from the history` }, "×");
    remove.addEventListener("click", () => {
      removeAt(position);
      byId("history").focus();
    });
    return element(
      "li",
      { className: known ? "chip" : "chip unknown" },
      element("span", { title }, title),
      query ? element("span", { className: "by" }, `by “${query}”`) : null,
      known ? null : element("span", { className: "by" }, "unknown"),
      remove,
    );
  });
  byId("chips").replaceChildren(...chips);
  byId("chips").scrollTop = byId("chips").scrollHeight; // show the newest, which is last
  byId("clear").classList.toggle("away", !history.length);
}

/** Look up the titles of history items that have none yet. */
async function nameHistory() {
  const ids = [...new Set(history.map(({ item_id }) => item_id))].filter((id) => !titles.get(id));
  if (!ids.length) return;
  const found = new Map((await namedItems(ids)).map((item) => [item.item_id, item.title]));
  ids.forEach((id) => titles.set(id, found.get(id) ?? null));
  drawChips();
}

// ---- the address ----

function writeAddress() {
  const address = new URLSearchParams();
  for (const { item_id, query } of history) {
    address.append("item", item_id);
    if (query) address.append("by", query); // the query that found the previous item
  }
  TEXTS.filter((id) => byId(id).value.trim()).forEach((id) => address.set(id, byId(id).value.trim()));
  CHECKS.filter((id) => byId(id).checked).forEach((id) => address.set(id, "1"));
  if (form.elements.show.value !== "both") address.set("show", form.elements.show.value);
  window.history.replaceState(null, "", `#${address}`);
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  history = [];
  for (const [name, value] of address) {
    if (name === "item" && value) history.push({ item_id: value });
    if (name === "by" && value && history.length) Object.assign(history.at(-1), { behaviour: "search", query: value });
  }
  history = history.slice(-MAX_HISTORY);
  for (const id of TEXTS) byId(id).value = address.get(id) ?? "";
  for (const id of CHECKS) byId(id).checked = address.get(id) === "1";
  form.elements.show.value = ["search", "recommend"].includes(address.get("show")) ? address.get("show") : "both";
  if (OPTIONS.some((id) => byId(id).value)) byId("options").open = true;
  drawChips();
  layOut();
}

function layOut() {
  byId("panes").dataset.show = form.elements.show.value;
}

// ---- requests ----

const soon = debounced(PAUSE_MS, ask);

/** Return the fields that both requests share; null if the filter is not a JSON object. */
function readForm() {
  const body = { history };
  const number = (id) => byId(id).valueAsNumber;
  if (!Number.isNaN(number("limit"))) body.limit = number("limit");
  if (!Number.isNaN(number("beam"))) body.beam_width = number("beam");
  if (byId("exclude").value) body.exclude_history = byId("exclude").value === "1";
  if (byId("explain").checked) body.explain = true;
  if (byId("fallback").value) body.fallback = byId("fallback").value;
  const filter = readFilter();
  if (filter === null) return null;
  return filter === undefined ? body : { ...body, filter };
}

function readFilter() {
  const text = byId("filter").value.trim();
  let filter;
  try {
    filter = text ? JSON.parse(text) : undefined;
  } catch {
    filter = null;
  }
  const wrong = filter === null || (text !== "" && (typeof filter !== "object" || Array.isArray(filter)));
  byId("filter").setAttribute("aria-invalid", String(wrong));
  byId("filter-hint").textContent = wrong ? 'Not a JSON object, as in {"year": {"gte": 1990}}' : filterHint();
  return wrong ? null : filter;
}

function filterHint() {
  const names = served?.attributes ?? [];
  return names.length ? `Attributes: ${names.join(", ")}` : "\u00a0";
}

function ask() {
  soon.cancel();
  writeAddress();
  layOut();
  const show = form.elements.show.value;
  const body = readForm();
  if (body === null) return;
  const query = byId("query").value.trim();
  for (const [task, list] of Object.entries(panes)) {
    list.asking.abort();
    if (show !== "both" && show !== task) continue;
    if (served?.key_required && !key.get()) list.hint("Enter the API key to ask.");
    else if (task === "search" && !query) list.hint(NO_QUERY);
    else askOne(list, task, task === "search" ? { query, ...body } : body);
  }
}

async function askOne(list, task, body) {
  list.asking = new AbortController();
  const { signal } = list.asking;
  list.busy(curl(task, body));
  try {
    const answer = await rank(task, body, signal);
    if (signal.aborted) return;
    list.show(answer, body.history);
    if (answer.index_version !== served?.index_version || answer.bundle_id !== served?.bundle_id) describe();
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) byId("key-field").hidden = false;
    list.fail(error instanceof Problem ? error : new Problem({ title: "The page failed", detail: String(error) }));
  }
}

function changed() {
  drawChips();
  ask();
}

function askAndName() {
  ask();
  nameHistory().catch(() => {}); // the lists show the error
}

// ---- the served bundle ----

async function describe() {
  try {
    served = await info();
  } catch (error) {
    byId("card").replaceChildren(problemBox(error));
    return;
  }
  const { limits } = served;
  byId("serving").textContent = `${served.bundle_id} · index ${served.index_version} · ${served.items.toLocaleString("en")} items`;
  byId("card").replaceChildren(...card(served));
  byId("limit").placeholder = limits.default_limit;
  byId("limit").max = limits.max_limit;
  byId("beam").placeholder = limits.default_beam_width;
  byId("beam").max = limits.max_beam_width;
  byId("query").maxLength = limits.max_query_chars;
  byId("key-field").hidden = !served.key_required;
  readFilter();
}

// ---- start ----

combobox({
  input: byId("history"),
  list: byId("titles"),
  find: findTitles,
  choose: (item) => add(item),
  back: () => history.length && removeAt(history.length - 1),
  tell: (text) => (byId("announce").textContent = text),
});
byId("clear").addEventListener("click", () => {
  history = [];
  changed();
  byId("history").focus();
});
byId("key").value = key.get();
byId("key").addEventListener("change", () => {
  key.set(byId("key").value.trim());
  askAndName();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.addEventListener("input", (event) => {
  if (!["history", "key"].includes(event.target.id)) soon();
});
window.addEventListener("hashchange", () => {
  readAddress();
  askAndName();
});

readAddress();
if (!byId("query").value) panes.search.hint(NO_QUERY);
describe().then(askAndName);
