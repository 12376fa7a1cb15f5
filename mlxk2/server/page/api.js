// The server's API, as far as this page needs it. Addresses are relative, so that a proxy may serve it under any path.

const KEY = "mlxk2.key";
const HINTS = {
  context_length_exceeded: "Start a new conversation, or edit your last message.",
  // Its message says it all.
  server_busy: "",
  shutting_down: "Once the server runs again, try again.",
  unreachable: "Is it still running?",
  lost: "What came until then is kept.",
};

/** Why there is no answer, or no more of it; `hint` says what to do about it. */
export class ServerError extends Error {
  constructor(message, code, hint = HINTS[code] ?? "") {
    super(message);
    this.hint = hint;
  }
}

/** The server; `askKey(wasWrong)` is called when it wants a key, and gives one, or null. */
export class Api {
  #askKey;
  #asking = null;
  // Not localStorage: a key should not outlive the tab it was typed into.
  #key = stored();

  constructor(askKey) {
    this.#askKey = askKey;
  }

  /** Return how the server is. */
  async health() {
    return (await reach("health")).json();
  }

  /** Return the models that can answer. */
  async models() {
    return (await (await this.#request("v1/models")).json()).data;
  }

  /** Yield the chunks of a chat completion; raise ServerError, also when the connection breaks on the way. */
  async *chat(body, signal) {
    const options = { stream: true, stream_options: { include_usage: true } };
    const request = { method: "POST", body: JSON.stringify({ ...body, ...options }), signal };
    const response = await this.#request("v1/chat/completions", request);
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
      yield chunk;
    }
    throw new ServerError("The connection to the server was lost.", "lost");
  }

  async #request(path, options = {}) {
    for (;;) {
      const key = this.#key;
      const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${utf8(key)}` }) };
      const response = await reach(path, { ...options, headers });
      if (response.status !== 401) return checked(response);
      // Whoever else was refused has asked for a new one already.
      if (key === this.#key) await this.#renewKey((await fault(response)).message);
      options.signal?.throwIfAborted();
    }
  }

  async #renewKey(refusal) {
    this.#asking ??= this.#askKey(Boolean(this.#key));
    const key = await this.#asking;
    this.#asking = null;
    if (!key) throw new ServerError(refusal, "invalid_api_key");
    this.#key = key;
    keep(key);
  }
}

async function reach(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    // What was stopped on purpose is none of the server's faults.
    throw error.name === "AbortError" ? error : new ServerError("The server can't be reached.", "unreachable");
  }
}

async function checked(response) {
  if (response.ok) return response;
  const { message, code } = await fault(response);
  const wait = response.status === 503 && response.headers.get("Retry-After");
  throw new ServerError(message, code, HINTS[code] ?? (wait ? `Try again in ${wait} s.` : ""));
}

async function fault(response) {
  // A proxy in between may answer with anything.
  const body = await response.json().catch(() => null);
  return body?.error ?? { message: `The server answered ${response.status}.` };
}

/** Yield the data of server-sent events, each on a line of its own. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
  }
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  return { done: true };
}

/** Return a text as the bytes of UTF-8, one character each, as headers take them. */
function utf8(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function keep(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // Then it is asked for again after a reload.
  }
}
