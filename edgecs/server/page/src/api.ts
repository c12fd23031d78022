/** The server's API: chat completions as a stream, models, settings. */

import type { Measured, Message, Settings, TokenDetail } from "./types.js";
import { SAMPLING_NAMES } from "./types.js";

const KEY = "edgecs.api-key";
const SILENCE = 60_000; // milliseconds; the server sends a comment every 15 s

/** An error that the server stated, or that kept it from answering. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

/** The API key of this tab; it is asked for when the server refuses. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value: string) => sessionStorage.setItem(KEY, value),
};

export interface Part {
  content: string;
  thought: string;
  tokens: TokenDetail[];
  finish: string | null;
  measured: Measured | null;
}

export interface Server {
  models: string[];
  loaded: string[]; // those in memory
}

/** What is known of a model that is in memory. */
export interface Model {
  chain: string[]; // the target and its drafters
  reason: string | null; // why it has no drafters
}

/** Whether the model is loaded; errors mean that the server is not there. */
export async function healthy(): Promise<boolean> {
  return (await fetch("/health")).ok;
}

/** The models. Raises ApiError. */
export async function describe(): Promise<Server> {
  const { data } = (await get("/v1/models")) as { data: any[] };
  const names = (list: any[]): string[] => list.map(({ id }) => String(id));
  const loaded = data.filter(({ status }) => status?.value === "loaded");
  return { models: names(data), loaded: names(loaded) };
}

/** A model that is in memory. Raises ApiError. */
export async function describeModel(name: string): Promise<Model> {
  const props = (await get(`/props?model=${encodeURIComponent(name)}`)) as any;
  return {
    chain: (props.chain ?? ["target"]).map(String),
    reason: props.off_reason ?? null,
  };
}

/** The body of a request for an answer to some messages. */
export function requestBody(
  messages: readonly Message[],
  settings: Settings,
  seed: number,
): Record<string, unknown> {
  const system = settings.system.trim();
  const body: Record<string, unknown> = {
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...messages.map(({ role, content }) => ({ role, content })),
    ],
    stream: true,
    token_details: true,
    speculative: settings.speculative,
  };
  if (settings.model !== null) body.model = settings.model;
  for (const name of SAMPLING_NAMES) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  body.seed = seed;
  return body;
}

/** An answer in parts. Raises ApiError, or AbortError when `stop` is aborted. */
export async function* answer(
  body: Record<string, unknown>,
  stop: AbortSignal,
): AsyncGenerator<Part> {
  const silence = new AbortController();
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.any([stop, silence.signal]),
  });
  for await (const event of events(response, silence)) {
    const data = JSON.parse(event);
    if (data.error) throw new ApiError(String(data.error.message), data.error.code ?? 0);
    yield part(data);
  }
}

function part(data: any): Part {
  const choice = data.choices?.[0] ?? {};
  return {
    content: choice.delta?.content ?? "",
    thought: choice.delta?.reasoning_content ?? "",
    tokens: (choice.token_details ?? []).map(kept),
    finish: choice.finish_reason ?? null,
    measured: data.timings ? measured(data.timings, data.speculative ?? {}) : null,
  };
}

/** What is stored of a token; the server states more. */
function kept({ id, text, source, p, round, width, rejected }: TokenDetail): TokenDetail {
  return { id, text, source, p, round, width, rejected };
}

function measured(timings: any, speculative: any): Measured {
  return {
    tokens: timings.predicted_n,
    rate: timings.predicted_per_second,
    promptTokens: timings.prompt_n + (timings.cache_n ?? 0),
    promptSeconds: timings.prompt_ms / 1000,
    rounds: speculative.rounds ?? 0,
    tested: speculative.tested ?? 0,
    accepted: speculative.accepted ?? 0,
    reason: speculative.reason ?? null,
  };
}

/** The data of server-sent events until [DONE]. */
async function* events(
  response: Response,
  silence: AbortController,
): AsyncGenerator<string> {
  if (!response.body) throw new ApiError("the server sent no answer", 0);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const timer = setTimeout(() => {
        silence.abort(new ApiError("the server has stopped sending: try again", 0));
      }, SILENCE);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) throw new ApiError("the connection ended before the answer did", 0);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue;
        const data = block.slice("data: ".length);
        if (data === "[DONE]") return;
        yield data;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

async function get(url: string): Promise<unknown> {
  return (await call(url, {})).json();
}

async function call(url: string, init: RequestInit): Promise<Response> {
  const headers = new Headers(init.headers);
  const secret = key.get();
  if (secret) headers.set("authorization", `Bearer ${secret}`);
  let response: Response;
  try {
    response = await fetch(url, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("the server does not answer: check that it is running", 0);
  }
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

async function reason(response: Response): Promise<string> {
  const text = await response.text().catch(() => "");
  try {
    return String(JSON.parse(text).error.message);
  } catch {
    return `the server answered with status ${response.status}`;
  }
}
