// Small helpers for building the page. Texts become text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** Make an element with children and properties (attributes if the name has a dash or is `role`). */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Return a function that runs `work` once it was not called for the given milliseconds; its `cancel` drops the call. */
export function debounced(milliseconds, work) {
  let timer;
  const call = () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
  return Object.assign(call, { cancel: () => clearTimeout(timer) });
}

/** Format a number with a fixed number of decimals and a real minus sign. */
export const fixed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

/** Format a share as a percentage. */
export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
