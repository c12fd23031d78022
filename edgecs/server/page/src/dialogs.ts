/** Questions in a dialog. */

import { h } from "./dom.js";

/** Whether the user agrees. */
export async function asks(title: string, text: string, yes: string): Promise<boolean> {
  return (await answered(title, h("p", {}, text), yes, "danger")) !== null;
}

/** A text of the user; null: cancelled. */
export async function asksText(
  title: string,
  label: string,
  value: string,
  secret = false,
): Promise<string | null> {
  const input = h("input", {
    type: secret ? "password" : "text",
    autocomplete: "off",
    maxlength: secret ? 4096 : 200,
    required: true,
  });
  input.value = value;
  const field = h("label", {}, h("span", {}, label), input);
  const done = await answered(title, field, secret ? "Use it" : "Save", "primary");
  return done === null ? null : input.value;
}

function answered(
  title: string,
  content: HTMLElement,
  yes: string,
  look: string,
): Promise<string | null> {
  const heading = h("h2", { id: "question" }, title);
  const dialog = h("dialog", { "aria-labelledby": "question" });
  const cancel = h(
    "button",
    { type: "button", class: "plain", onclick: () => dialog.close() },
    "Cancel",
  );
  const ok = h("button", { class: look, value: "yes" }, yes);
  const choice = h("div", { class: "choice" }, cancel, ok);
  dialog.append(h("form", { method: "dialog" }, heading, content, choice));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? "yes" : null);
    });
  });
}
