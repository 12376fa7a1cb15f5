// The parts of the server's API that this page uses. Addresses are relative, so that a proxy may serve it on any path.

const KEY = "mlxk2.key";
const HINTS = {
  context_length_exceeded: "Start a new conversation, or edit your last message.",
  // The message says what to do.
  server_busy: "",
  shutting_down: "Once the server runs again, try again.",
  unreachable: "Is it still running?",
  lost: "What came until then is kept.",
};

/** A request that failed, or a stream that broke; `hint` says what the user can do. */
export class ServerError extends Error {
  constructor(message, code, hint = HINTS[code] ?? "") {
    super(message);
    this.hint = hint;
  }
}

/** The server; `askKey(wasWrong)` is called when it requires a key, and returns the user's key, or null. */
export class Api {
  #askKey;
  #asking = null;
  // sessionStorage keeps the key until the tab is closed; localStorage would keep it longer.
  #key = stored();

  constructor(askKey) {
    this.#askKey = askKey;
  }

  /** Return the state of the server. */
  async health() {
    return (await reach("health")).json();
  }

  /** Return the models that can run. */
  async models() {
    return (await (await this.#request("v1/models")).json()).data;
  }

  /** Yield the chunks of a chat completion; throw ServerError if it fails or the connection breaks. */
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
      // Another request that was refused may have asked for a new key already.
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
    // The user stopped this request; the server did not fail.
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
  // A proxy may send a body that is not JSON.
  const body = await response.json().catch(() => null);
  return body?.error ?? { message: `The server answered ${response.status}.` };
}

/** Yield the data of server-sent events; each event is one line. */
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

/** Return the UTF-8 bytes of a text, each as one character, as headers need them. */
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
    // Without storage, the page asks for the key again after a reload.
  }
}
