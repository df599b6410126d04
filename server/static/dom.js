// Small helpers for building the page. Texts become text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where the name has a dash or is `role`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A function that calls `work` when it has not been called for so many milliseconds, and `cancel`, which forgets it. */
export function debounced(milliseconds, work) {
  let timer;
  const call = () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
  return Object.assign(call, { cancel: () => clearTimeout(timer) });
}

/** A number with so many digits after the point and a real minus sign. */
export const fixed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
