/** The models of the server, and the control that chooses one. */

import { describe, describeModel, type Model, type Server } from "./api.js";
import { byId, h } from "./dom.js";
import type { Settings } from "./types.js";

const UNKNOWN: Model = { chain: ["target"], reason: null };

export class Models {
  private server: Server = { models: [], loaded: [] };
  private readonly known = new Map<string, Model>();

  /** The model that settings choose; null: the server has none. */
  of({ model }: Settings): string | null {
    const { models, loaded } = this.server;
    if (model !== null && models.includes(model)) return model;
    return loaded[0] ?? models[0] ?? null;
  }

  /** What is known of the model that settings choose. */
  about(settings: Settings): Model {
    return this.known.get(this.of(settings) ?? "") ?? UNKNOWN;
  }

  /** Asks which models there are, and about the chosen one if it is in memory.
   *
   * Whether something new is known. Raises ApiError.
   */
  async learn(settings: Settings): Promise<boolean> {
    const before = this.of(settings);
    this.server = await describe();
    const name = this.of(settings);
    if (name === null || this.known.has(name) || !this.server.loaded.includes(name)) {
      return name !== before;
    }
    this.known.set(name, await describeModel(name));
    return true;
  }

  /** The name of the only model, or a choice between several. */
  show(settings: Settings): void {
    const { models } = this.server;
    const choice = byId<HTMLSelectElement>("model");
    const name = byId("model-name");
    name.textContent = this.of(settings) ?? "";
    choice.replaceChildren(...models.map((one) => h("option", { value: one }, one)));
    choice.value = this.of(settings) ?? "";
    choice.hidden = models.length < 2;
    name.hidden = models.length >= 2;
  }
}
