// An answer while it is generated: its request, its message, which grows with each chunk, and how long that took.

import { pause } from "./dom.js";

// Milliseconds until the page shows what an answer waits for, and between two requests for the state of the server.
const WAITING_AFTER = 400;
const WAITING_EVERY = 1000;

/** Return the message that an answer will fill. */
export function newAnswer(model) {
  return { role: "assistant", model, content: "", reasoning: "", state: "streaming" };
}

/** Return the request for the answer to a conversation; the server chooses the value of each empty setting. */
export function requestFor(messages, settings) {
  const { model, system, temperature, maxTokens } = settings;
  const opening = system.trim() ? [{ role: "system", content: system }] : [];
  return {
    ...(model && { model }),
    ...(temperature !== "" && { temperature: Number(temperature) }),
    ...(maxTokens !== "" && { max_tokens: Number(maxTokens) }),
    messages: [...opening, ...turns(messages)],
  };
}

/** Return the messages in turns, as models expect them: two questions without an answer in between become one. */
function turns(messages) {
  const result = [];
  for (const { role, content } of messages.filter((message) => message.content)) {
    const last = result.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else result.push({ role, content });
  }
  return result;
}

/** One request; until its first text, `waiting` is what it waits for. */
export class Run {
  waiting = "";
  #controller = new AbortController();
  #first = 0;
  #answered = 0;
  #last = 0;

  constructor(message) {
    this.message = message;
  }

  /** End the request; the text that has come stays. `state` is the reason. */
  stop(state = "stopped") {
    this.message.state = state;
    this.#controller.abort();
  }

  /** Fill the message until the answer is complete, stopped or failed; call `onChange` after each chunk. */
  async fill(api, body, onChange) {
    this.#showWaiting(api, onChange);
    try {
      for await (const chunk of api.chat(body, this.#controller.signal)) {
        this.#take(chunk);
        onChange();
      }
      this.message.state = "done";
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error);
    }
    this.message.seconds = this.#seconds();
  }

  #fail({ message, hint = "" }) {
    // When the user leaves the page, the connection fails too; that is not a fault.
    if (this.message.state !== "streaming") return;
    this.message.state = "failed";
    this.message.fault = { text: message, hint };
  }

  #take({ choices: [choice], usage, timings, model }) {
    const { message } = this;
    if (usage) Object.assign(message, { usage, timings });
    if (!choice) return;
    const { content, reasoning_content: reasoning } = choice.delta;
    if (content || reasoning) this.#note(content);
    message.model = model;
    message.content += content ?? "";
    message.reasoning += reasoning ?? "";
    message.finish = choice.finish_reason ?? message.finish;
  }

  #note(isAnswer) {
    this.#last = performance.now();
    this.#first ||= this.#last;
    if (isAnswer) this.#answered ||= this.#last;
  }

  #seconds() {
    const thinking = this.message.reasoning ? (this.#answered || this.#last) - this.#first : 0;
    return { thinking: thinking / 1000, writing: (this.#last - this.#first) / 1000 };
  }

  async #showWaiting(api, onChange) {
    await pause(WAITING_AFTER);
    while (this.message.state === "streaming" && !this.#first) {
      const { loading, queued } = await api.health().catch(() => ({}));
      this.waiting = loading ? `Loading ${loading}…` : queued ? "Waiting in the queue…" : "";
      onChange();
      await pause(WAITING_EVERY);
    }
  }
}
