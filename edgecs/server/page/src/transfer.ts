/** Export and import of conversations. A file to import is hostile: every field is
 * checked and copied, and nothing else of the file is kept.
 */

import type {
  Comparison,
  Conversation,
  Measured,
  Message,
  Rejected,
  Sample,
  Settings,
  State,
  TokenDetail,
} from "./types.js";
import { newId, SAMPLING, SAMPLING_NAMES, usualSettings } from "./types.js";

const FORMAT = "edgecs-conversations/1";
export const MOST_BYTES = 64 << 20;
const MOST_CONVERSATIONS = 10_000;
const MOST_MESSAGES = 10_000;
const MOST_TOKENS = 1_000_000;
const MOST_TEXT = 4 << 20; // characters
const MOST_NAME = 200;
const STATES: readonly State[] = ["done", "stopped", "interrupted", "failed"];

/** A conversation, and the tokens of its answers by message. */
export interface Whole {
  conversation: Conversation;
  tokens: Map<string, TokenDetail[]>;
}

/** A file that cannot be imported; the message says why. */
export class ImportError extends Error {}

export function exported(wholes: readonly Whole[]): string {
  const conversations = wholes.map(({ conversation, tokens }) => ({
    ...conversation,
    messages: conversation.messages.map((message) => ({
      ...message,
      tokens: tokens.get(message.id) ?? [],
    })),
  }));
  return JSON.stringify({ format: FORMAT, conversations });
}

/** The conversations of a file. Raises ImportError. */
export function imported(text: string): Whole[] {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ImportError("it is not JSON: choose a file that this page has exported");
  }
  const file = new Fields(data, "the file");
  if (file.value("format") !== FORMAT) {
    throw new ImportError(
      `it does not have the format ${FORMAT}: choose a file that this page has exported`,
    );
  }
  return file.list("conversations", MOST_CONVERSATIONS).map(readConversation);
}

function readConversation(fields: Fields): Whole {
  const tokens = new Map<string, TokenDetail[]>();
  const messages: Message[] = [];
  const known = new Set<string>();
  for (const one of fields.list("messages", MOST_MESSAGES)) {
    const message = readMessage(one);
    if (known.has(message.id)) one.refuse("id", "is used twice");
    if (message.parent !== null && !known.has(message.parent)) {
      one.refuse("parent", "is not an earlier message");
    }
    known.add(message.id);
    messages.push(message);
    const list = one.list("tokens", MOST_TOKENS).map(readToken);
    if (list.length) tokens.set(message.id, list);
  }
  const leaf = fields.value("leaf") === null ? null : fields.text("leaf", MOST_NAME);
  if (leaf !== null && !known.has(leaf)) fields.refuse("leaf", "is not a message");
  const conversation = {
    id: fields.text("id", MOST_NAME),
    title: fields.text("title", MOST_NAME) || "Untitled",
    created: fields.number("created"),
    updated: fields.number("updated"),
    settings: readSettings(fields.object("settings")),
    messages,
    leaf,
  };
  return { conversation, tokens };
}

function readMessage(fields: Fields): Message {
  const role = fields.text("role", MOST_NAME);
  if (role !== "user" && role !== "assistant") {
    return fields.refuse("role", "is neither user nor assistant");
  }
  const state = fields.text("state", MOST_NAME);
  const optional = (name: string): string | null =>
    fields.value(name) === null ? null : fields.text(name, MOST_TEXT);
  return {
    id: fields.text("id", MOST_NAME),
    parent: optional("parent"),
    role,
    content: fields.text("content", MOST_TEXT),
    thought: fields.text("thought", MOST_TEXT),
    created: fields.number("created"),
    state: STATES.find((one) => one === state) ?? "interrupted",
    error: optional("error"),
    finish: optional("finish"),
    model: optional("model"),
    seed: fields.value("seed") === null ? null : fields.number("seed"),
    speculative: fields.value("speculative") !== false,
    measured: readMeasured(fields.maybe("measured")),
    comparison: readComparison(fields.maybe("comparison")),
    samples: fields.list("samples", MOST_NAME).map(readSample),
  };
}

function readSettings(fields: Fields): Settings {
  const settings = usualSettings();
  if (fields.value("model") !== null) settings.model = fields.text("model", MOST_NAME);
  settings.system = fields.text("system", MOST_TEXT);
  settings.speculative = fields.value("speculative") !== false;
  for (const name of SAMPLING_NAMES) {
    if (fields.value(name) === null) continue;
    const { min, max, whole } = SAMPLING[name];
    const value = fields.number(name);
    if (value < min || value > max || (whole && !Number.isInteger(value))) {
      fields.refuse(name, `is not between ${min} and ${max}`);
    }
    settings[name] = value;
  }
  return settings;
}

function readToken(fields: Fields): TokenDetail {
  const rejected = fields.maybe("rejected");
  return {
    ...readChoice(fields),
    round: fields.number("round"),
    width: fields.number("width"),
    rejected: rejected ? readChoice(rejected) : null,
  };
}

function readChoice(fields: Fields): Rejected {
  return {
    id: fields.number("id"),
    text: fields.text("text", MOST_TEXT),
    source: fields.text("source", MOST_NAME),
    p: fields.number("p"),
  };
}

function readSample(fields: Fields): Sample {
  const share = fields.value("acceptance");
  return {
    seconds: fields.number("seconds"),
    rate: fields.number("rate"),
    acceptance: share === null ? null : fields.number("acceptance"),
  };
}

function readMeasured(fields: Fields | null): Measured | null {
  if (!fields) return null;
  const reason = fields.value("reason");
  return {
    tokens: fields.number("tokens"),
    rate: fields.number("rate"),
    promptTokens: fields.number("promptTokens"),
    promptSeconds: fields.number("promptSeconds"),
    rounds: fields.number("rounds"),
    tested: fields.number("tested"),
    accepted: fields.number("accepted"),
    reason: reason === null ? null : fields.text("reason", MOST_TEXT),
  };
}

function readComparison(fields: Fields | null): Comparison | null {
  if (!fields) return null;
  return {
    withRate: fields.number("withRate"),
    withoutRate: fields.number("withoutRate"),
    tokens: fields.number("tokens"),
    equal: fields.number("equal"),
    repeated: fields.value("repeated") === true,
  };
}

/** The fields of an object of the file. where: its place, for messages. */
class Fields {
  private readonly data: Record<string, unknown>;

  constructor(
    data: unknown,
    private readonly where: string,
  ) {
    if (typeof data !== "object" || data === null || Array.isArray(data)) {
      throw new ImportError(`${where} is not an object`);
    }
    this.data = data as Record<string, unknown>;
  }

  /** null: there is no such field. */
  value(name: string): unknown {
    return Object.hasOwn(this.data, name) ? (this.data[name] ?? null) : null;
  }

  text(name: string, most: number): string {
    const value = this.value(name);
    if (typeof value !== "string") return this.refuse(name, "is not a text");
    if (value.length > most) return this.refuse(name, `has more than ${most} characters`);
    return value;
  }

  number(name: string): number {
    const value = this.value(name);
    if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
    return this.refuse(name, "is not a number of 0 or more");
  }

  object(name: string): Fields {
    return new Fields(this.value(name), `${this.where}, ${name}`);
  }

  maybe(name: string): Fields | null {
    return this.value(name) === null ? null : this.object(name);
  }

  list(name: string, most: number): Fields[] {
    const value = this.value(name);
    if (!Array.isArray(value)) return this.refuse(name, "is not a list");
    if (value.length > most) return this.refuse(name, `has more than ${most} entries`);
    return value.map((one, i) => new Fields(one, `${this.where}, ${name} ${i + 1}`));
  }

  refuse(name: string, why: string): never {
    throw new ImportError(`${this.where}: ${name} ${why}`);
  }
}

/** The same conversation with ids that no other one has. */
export function renamed({ conversation, tokens }: Whole): Whole {
  const ids = new Map(conversation.messages.map(({ id }) => [id, newId()]));
  const other = (id: string | null): string | null => (id === null ? null : ids.get(id)!);
  const messages = conversation.messages.map((message) => ({
    ...message,
    id: ids.get(message.id)!,
    parent: other(message.parent),
  }));
  return {
    conversation: {
      ...conversation,
      id: newId(),
      messages,
      leaf: other(conversation.leaf),
    },
    tokens: new Map([...tokens].map(([id, list]) => [ids.get(id)!, list])),
  };
}
