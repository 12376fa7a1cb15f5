// An answer on its way: the request it comes from, its chunks gathered into a message, and how long that took.

import { pause } from "./dom.js";

// Milliseconds until the page says what an answer waits for, and between two looks at it.
const PATIENCE = 400;
const INTERVAL = 1000;

/** Return the message that an answer will fill. */
export function newAnswer(model) {
  return { role: "assistant", model, content: "", reasoning: "", state: "streaming" };
}

/** Return the request for the answer to a conversation; of the settings, what is empty is the server's choice. */
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

/** Return what was said, in turns: where an answer never came, two questions become one, since models expect turns. */
function turns(messages) {
  const said = [];
  for (const { role, content } of messages.filter((message) => message.content)) {
    const last = said.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else said.push({ role, content });
  }
  return said;
}

/** One request under way; `waiting` says what for, as long as nothing has come. */
export class Run {
  waiting = "";
  #controller = new AbortController();
  #first = 0;
  #answered = 0;
  #last = 0;

  constructor(message) {
    this.message = message;
  }

  /** End it, and say why; what came stays. */
  stop(state = "stopped") {
    this.message.state = state;
    this.#controller.abort();
  }

  /** Fill the message until the answer is whole, stopped or broken, calling `onChange` for every part of it. */
  async fill(api, body, onChange) {
    this.#tellWaiting(api, onChange);
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
    // A page that is left loses its connections too.
    if (this.message.state !== "streaming") return;
    this.message.state = "failed";
    this.message.fault = { text: message, hint };
  }

  #take({ choices: [choice], usage, model }) {
    const { message } = this;
    if (usage) message.usage = usage;
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

  async #tellWaiting(api, onChange) {
    await pause(PATIENCE);
    while (this.message.state === "streaming" && !this.#first) {
      const { loading, queued } = await api.health().catch(() => ({}));
      this.waiting = loading ? `Loading ${loading}…` : queued ? "Waiting in the queue…" : "";
      onChange();
      await pause(INTERVAL);
    }
  }
}
