/** Building elements. Text is always set as text, never parsed as HTML. */

type Child = Node | string | null;
type Value = string | number | boolean | null | ((event: never) => void);

/** An element; `on...` sets listeners, `true` an empty attribute, null none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  values: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (typeof value === "function") {
      element.addEventListener(name.slice(2), value as EventListener);
    } else if (value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. */
export function svg(
  tag: string,
  values: Record<string, string | number> = {},
  ...children: Node[]
): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) {
    element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/** An icon of index.html; it has no name of its own. */
export function icon(name: string): SVGElement {
  const use = svg("use", { href: `#icon-${name}` });
  return svg("svg", { class: "icon", "aria-hidden": "true" }, use);
}

/** A button with an icon; the label is its name, shown only if `shown`. */
export function iconButton(
  name: string,
  label: string,
  onclick: () => void,
  shown = false,
): HTMLButtonElement {
  return h(
    "button",
    {
      type: "button",
      class: shown ? "quiet" : "quiet only-icon",
      "aria-label": shown ? null : label,
      title: shown ? null : label,
      onclick,
    },
    icon(name),
    shown ? h("span", {}, label) : null,
  );
}

/** The element with an id, which must exist. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`there is no element ${id}`);
  return found as T;
}
