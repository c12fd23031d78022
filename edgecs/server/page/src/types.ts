/** What is stored in the browser and exported. Times are milliseconds since 1970. */

export type Role = "user" | "assistant";

/** answering: under way; interrupted: the page was closed before its end. */
export type State = "done" | "answering" | "stopped" | "interrupted" | "failed";

export interface Rejected {
  id: number;
  text: string;
  source: string;
  p: number;
}

/** One token: what is kept of what the server states under `token_details`. */
export interface TokenDetail {
  id: number;
  text: string;
  source: string;
  p: number;
  round: number;
  width: number;
  rejected: Rejected | null;
}

/** A point of the live chart. seconds: since the first token. */
export interface Sample {
  seconds: number;
  rate: number; // tokens per second
  acceptance: number | null; // share of the tested tokens; null: none were tested
}

export interface Measured {
  tokens: number;
  rate: number; // tokens per second after the prompt
  promptTokens: number;
  promptSeconds: number;
  rounds: number;
  tested: number;
  accepted: number;
  reason: string | null; // why there were no drafts
}

export interface Comparison {
  withRate: number;
  withoutRate: number;
  tokens: number; // of the longer one
  equal: number; // leading tokens with the same ids
  repeated: boolean; // the drafters had seen the text
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  thought: string;
  created: number;
  state: State;
  error: string | null;
  finish: string | null;
  model: string | null;
  seed: number | null;
  speculative: boolean;
  measured: Measured | null;
  comparison: Comparison | null;
  samples: Sample[];
}

/** Settings of a conversation; null: the server's. */
export interface Settings {
  model: string | null;
  system: string;
  speculative: boolean;
  temperature: number | null;
  top_p: number | null;
  top_k: number | null;
  min_p: number | null;
  repeat_penalty: number | null;
  max_tokens: number | null;
  seed: number | null;
}

/** messages: every parent precedes its children. leaf: the last message shown. */
export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  settings: Settings;
  messages: Message[];
  leaf: string | null;
}

export const SAMPLING = {
  temperature: { label: "Temperature", min: 0, max: 5, step: 0.05, whole: false },
  top_p: { label: "Top p", min: 0, max: 1, step: 0.01, whole: false },
  top_k: { label: "Top k", min: 0, max: 1_000_000, step: 1, whole: true },
  min_p: { label: "Min p", min: 0, max: 1, step: 0.01, whole: false },
  repeat_penalty: {
    label: "Repeat penalty",
    min: 0.1,
    max: 5,
    step: 0.05,
    whole: false,
  },
  max_tokens: {
    label: "Most tokens",
    min: 1,
    max: 1_000_000,
    step: 1,
    whole: true,
  },
  seed: { label: "Seed", min: 0, max: 4_294_967_295, step: 1, whole: true },
} as const;

export type SamplingName = keyof typeof SAMPLING;
export const SAMPLING_NAMES = Object.keys(SAMPLING) as SamplingName[];

export function usualSettings(): Settings {
  return {
    model: null,
    system: "",
    speculative: true,
    temperature: null,
    top_p: null,
    top_k: null,
    min_p: null,
    repeat_penalty: null,
    max_tokens: null,
    seed: null,
  };
}

export function newMessage(
  role: Role,
  parent: string | null,
  content = "",
): Message {
  return {
    id: newId(),
    parent,
    role,
    content,
    thought: "",
    created: Date.now(),
    state: "done",
    error: null,
    finish: null,
    model: null,
    seed: null,
    speculative: true,
    measured: null,
    comparison: null,
    samples: [],
  };
}

export function newConversation(settings: Settings): Conversation {
  const now = Date.now();
  return {
    id: newId(),
    title: "New conversation",
    created: now,
    updated: now,
    settings: { ...settings },
    messages: [],
    leaf: null,
  };
}

/** A random id; `crypto.randomUUID` needs HTTPS or loopback. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
