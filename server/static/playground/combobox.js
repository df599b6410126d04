// A text field with a list of titles below it: the combobox pattern of the ARIA Authoring Practices.

import { debounced, element } from "./dom.js";

const PAUSE_MS = 120;

/**
 * find(text, signal): returns the items to offer.
 * choose(item): called with the chosen item.
 * back(): called for Backspace in the empty field.
 * tell(text): reports a text to screen readers.
 */
export function combobox({ input, list, find, choose, back, tell }) {
  let items = [];
  let active = -1;
  let asking = new AbortController();

  function close() {
    look.cancel();
    asking.abort();
    items = [];
    list.hidden = true;
    list.replaceChildren();
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function activate(position) {
    active = position;
    [...list.children].forEach((option, k) => option.setAttribute("aria-selected", String(k === position)));
    input.setAttribute("aria-activedescendant", `title-${position}`);
    list.children[position].scrollIntoView({ block: "nearest" });
  }

  function take(position) {
    const item = items[position];
    input.value = "";
    close();
    choose(item);
  }

  /** none: text to report if there is nothing to offer. */
  function open(found, none) {
    items = found;
    const options = items.map((item, k) => {
      const option = element("li", { id: `title-${k}`, role: "option", "aria-selected": "false" });
      option.append(element("span", {}, item.title), element("span", { className: "id" }, item.item_id));
      option.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
      option.addEventListener("click", () => take(k));
      return option;
    });
    if (!options.length) options.push(element("li", { className: "none", role: "option", "aria-disabled": "true" }, none));
    list.replaceChildren(...options);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    if (items.length) activate(0);
    tell(items.length ? `${items.length} titles` : none);
  }

  const look = debounced(PAUSE_MS, async () => {
    const text = input.value.trim();
    if (!text) return close();
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    try {
      const found = await find(text, signal);
      if (!signal.aborted) open(found, "No such title");
    } catch (problem) {
      if (!signal.aborted) open([], `${problem.message}. ${problem.detail}`);
    }
  });

  input.addEventListener("input", look);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (items.length) activate((active + step + items.length) % items.length);
      else look();
    } else if (event.key === "Enter" && (items.length || input.value.trim())) {
      event.preventDefault(); // an incomplete title sends no request
      if (items.length) take(active);
    } else if (event.key === "Escape") {
      if (list.hidden) input.value = "";
      close();
    } else if (event.key === "Backspace" && !input.value) {
      back();
    }
  });
}
