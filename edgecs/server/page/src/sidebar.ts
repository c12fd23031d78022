/** The list of conversations. */

import { matches } from "./branches.js";
import { h, iconButton } from "./dom.js";
import type { Conversation } from "./types.js";

const DAY = 86_400_000; // milliseconds

export interface ListActions {
  select(conversation: Conversation): void;
  rename(conversation: Conversation): void;
  remove(conversation: Conversation): void;
}

/** The entries that a search finds, the newest first, under the time of their change. */
export function conversationList(
  conversations: Iterable<Conversation>,
  query: string,
  current: Conversation | null,
  actions: ListActions,
): HTMLElement[] {
  const found = [...conversations].filter((one) => matches(one, query));
  found.sort((a, b) => b.updated - a.updated);
  if (!found.length) {
    const text = query ? "No conversation has these words." : "No conversations yet.";
    return [h("p", { class: "hint" }, text)];
  }
  const groups = new Map<string, HTMLElement[]>();
  for (const one of found) {
    const name = age(one.updated);
    groups.set(name, [...(groups.get(name) ?? []), entry(one, one === current, actions)]);
  }
  return [...groups].flatMap(([name, entries]) => [
    h("h2", { class: "age" }, name),
    h("ul", { "aria-label": name }, ...entries),
  ]);
}

function entry(
  conversation: Conversation,
  isCurrent: boolean,
  actions: ListActions,
): HTMLElement {
  const { title } = conversation;
  return h(
    "li",
    { class: "entry" },
    h(
      "button",
      {
        type: "button",
        class: "title",
        title,
        "aria-current": isCurrent ? "page" : null,
        onclick: () => actions.select(conversation),
      },
      title,
    ),
    iconButton("edit", `Rename ${title}`, () => actions.rename(conversation)),
    iconButton("delete", `Delete ${title}`, () => actions.remove(conversation)),
  );
}

function age(time: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Last week";
  return "Older";
}
