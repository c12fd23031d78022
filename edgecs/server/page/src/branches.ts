/** The tree of messages: editing and regenerating add siblings, nothing is lost. */

import type { Conversation, Message } from "./types.js";

/** The messages from the first one to the leaf. */
export function path(conversation: Conversation): Message[] {
  return pathTo(conversation, conversation.leaf);
}

/** The messages from the first one to `last`. */
export function pathTo(conversation: Conversation, last: string | null): Message[] {
  const known = new Map(conversation.messages.map((one) => [one.id, one]));
  const found: Message[] = [];
  for (let id = last; id !== null; ) {
    const message = known.get(id);
    if (!message) break;
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** The versions of a message, itself included, in the order of their creation. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return conversation.messages.filter(
    (one) => one.parent === message.parent && one.role === message.role,
  );
}

/** The newest message that follows `id` through any number of others. */
export function newestLeaf(conversation: Conversation, id: string): string {
  let leaf = id;
  for (const message of conversation.messages) {
    if (message.parent === leaf) leaf = newestChild(conversation, leaf);
  }
  return leaf;
}

function newestChild(conversation: Conversation, id: string): string {
  const children = conversation.messages.filter((one) => one.parent === id);
  return children.at(-1)?.id ?? id;
}

/** A title from the first message. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  const plain = line.replace(/^[#>*\-\s]+/, "").trim();
  return plain.length > 60 ? `${plain.slice(0, 59).trimEnd()}…` : plain || "Untitled";
}

/** Whether a conversation contains all words of a search, in any case. */
export function matches(conversation: Conversation, query: string): boolean {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const texts = [conversation.title, ...conversation.messages.map((m) => m.content)];
  const text = texts.join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
