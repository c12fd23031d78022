/** The dialog with the settings of a conversation. */

import { byId, h } from "./dom.js";
import { SAMPLING, SAMPLING_NAMES, type Settings } from "./types.js";

const DEFAULTS = "edgecs.settings";

/** Shows the dialog; `changed` gets the settings when it is closed with Save. */
export function editSettings(
  settings: Settings,
  changed: (settings: Settings) => void,
): void {
  const dialog = byId<HTMLDialogElement>("settings");
  const form = byId<HTMLFormElement>("settings-form");
  const system = byId<HTMLTextAreaElement>("system");
  system.value = settings.system;
  const fields = byId("sampling");
  fields.replaceChildren(...SAMPLING_NAMES.map((name) => field(name, settings[name])));
  form.onsubmit = () => {
    const next: Settings = { ...settings, system: system.value };
    for (const name of SAMPLING_NAMES) {
      const value = byId<HTMLInputElement>(`sampling-${name}`).value;
      next[name] = value === "" ? null : Number(value);
    }
    changed(next);
  };
  byId("settings-reset").onclick = () => {
    for (const name of SAMPLING_NAMES) {
      byId<HTMLInputElement>(`sampling-${name}`).value = "";
    }
    system.value = "";
  };
  byId("settings-cancel").onclick = () => dialog.close();
  dialog.showModal();
}

function field(name: (typeof SAMPLING_NAMES)[number], value: number | null): HTMLElement {
  const { label, min, max, step } = SAMPLING[name];
  const input = h("input", {
    id: `sampling-${name}`,
    type: "number",
    min,
    max,
    step: name === "repeat_penalty" ? "any" : step,
    placeholder: name === "seed" ? "random" : "default",
  });
  if (value !== null) input.value = String(value);
  return h("label", {}, h("span", {}, label), input);
}

/** The settings that a new conversation begins with. */
export function loadDefaults(usual: Settings): Settings {
  try {
    const stored = JSON.parse(localStorage.getItem(DEFAULTS) ?? "{}");
    return { ...usual, ...stored };
  } catch {
    return usual;
  }
}

export function saveDefaults(settings: Settings): void {
  try {
    localStorage.setItem(DEFAULTS, JSON.stringify(settings));
  } catch {
    // It is full or forbidden: the next page begins with the usual ones.
  }
}
