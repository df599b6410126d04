// Requests to the server, and the same requests as curl commands.

const KEY = "gems-api-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An error, from the server's problem document. */
export class Problem extends Error {
  constructor({ title, status = 0, detail = "", request_id = "", errors = [] }) {
    super(title);
    Object.assign(this, { title, status, detail, request_id, errors });
  }
}

const url = (path) => new URL(path, document.baseURI);

/** Return the JSON of an answer. Throws `Problem`, or `AbortError` if `signal` is aborted. */
async function call(path, options) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(url(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The server did not answer", detail: "It may be down, or out of reach." });
  }
  const json = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (response.ok) return json;
  throw new Problem({ title: "The request failed", ...json, status: response.status });
}

export const info = () => call("info", {});

/** Find the items whose titles match the typed text. */
export function findTitles(prefix, signal) {
  return call(`v1/items?${new URLSearchParams({ prefix, limit: 8 })}`, { signal }).then((found) => found.items);
}

/** Return the items with these ids, without unknown ids. At most 100 ids. */
export function namedItems(ids, signal) {
  return call(`v1/items?${new URLSearchParams(ids.map((id) => ["id", id]))}`, { signal }).then((found) => found.items);
}

/** Rank items. task: `search` or `recommend`. */
export function rank(task, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(`v1/${task}`, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Return the request as a shell command. It names a variable instead of the API key. */
export function curl(task, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const sent = key.get() ? ' -H "Authorization: Bearer $GEMS_API_KEY"' : "";
  return `curl -s ${url(`v1/${task}`).href} -H 'Content-Type: application/json'${sent} -d '${quoted}'`;
}
