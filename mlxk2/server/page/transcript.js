// The conversation as the user reads it: one article for each message. An answer is drawn again as it grows.

import { copy, element, pause } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const NOTES = {
  stopped: () => "Stopped.",
  interrupted: () => "Unfinished: the page was closed.",
  elsewhere: () => "Unfinished, or being written in another tab.",
  failed: ({ fault }) => [fault.text, fault.hint].filter(Boolean).join(" "),
  done: ({ finish, content, reasoning }) => {
    if (finish === "length") return "Cut off: the answer reached its limit of tokens.";
    return content || reasoning ? "" : "The model answered with nothing.";
  },
};
// Seconds. Tokens that come in a shorter time may have come all at once, which says nothing about the speed.
const MIN_SECONDS = 0.05;
// Drawing takes at most a quarter of the time, however long an answer is: pause this many times as long as it took.
const PAUSE_FACTOR = 3;

/**
 * The messages of one conversation; `actions` are `edit` and `retry`, for its last question and answer.
 * `toEnd` is a button that is visible while the end is not.
 */
export class Transcript {
  #list;
  #scroller;
  #toEnd;
  #actions;
  #run = null;
  #last = null;
  #parts = new Map();
  #isStale = false;
  #isDrawing = false;
  #isAtEnd = true;

  constructor({ list, scroller, toEnd }, actions) {
    this.#list = list;
    this.#scroller = scroller;
    this.#toEnd = toEnd;
    this.#actions = actions;
    list.addEventListener("click", copyCode);
    toEnd.addEventListener("click", () => this.scrollToEnd());
    scroller.addEventListener("scroll", () => this.#follow(isAtEnd(scroller)));
  }

  /** Show a conversation, with its `run` if an answer is being generated. Messages on the page already stay. */
  show({ messages }, run) {
    this.#run = run;
    const parts = messages.map((message) => this.#parts.get(message) ?? this.#part(message));
    this.#parts = new Map(parts.map((part) => [part.message, part]));
    this.#last = parts.findLast((part) => part instanceof Answer) ?? null;
    const lastQuestion = parts.findLast((part) => part instanceof Question);
    for (const part of parts) part.offer(!run && (part === this.#last || part === lastQuestion));
    this.#last?.draw(run);
    this.#place(parts.map((part) => part.node));
    if (this.#isAtEnd) this.scrollToEnd();
  }

  /** Draw the growing answer again, in the browser's next frame or a little later. */
  async update() {
    this.#isStale = true;
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    while (this.#isStale) {
      await new Promise(requestAnimationFrame);
      const begin = performance.now();
      this.#isStale = false;
      this.#last?.draw(this.#run);
      if (this.#isAtEnd) this.scrollToEnd();
      await pause((performance.now() - begin) * PAUSE_FACTOR);
    }
    this.#isDrawing = false;
  }

  /** Scroll to the end, and stay there as the answer grows. */
  scrollToEnd() {
    this.#follow(true);
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** The text of the last answer, without markup. */
  get lastText() {
    return this.#last?.text ?? "";
  }

  /** Choose whether to follow the growing answer, or to stay where the user has scrolled to. */
  #follow(isAtEnd) {
    this.#isAtEnd = isAtEnd;
    this.#toEnd.hidden = isAtEnd;
  }

  #part(message) {
    if (message.role === "user") return new Question(message, this.#actions.edit);
    const answer = new Answer(message, this.#actions.retry);
    answer.draw(null);
    return answer;
  }

  #place(nodes) {
    for (const child of [...this.#list.children]) if (!nodes.includes(child)) child.remove();
    this.#list.append(...nodes.filter((node) => !node.isConnected));
  }
}

/** A message of the user. */
class Question {
  #edit;

  constructor(message, edit) {
    this.message = message;
    this.#edit = button("Edit", edit);
    const text = element("div", { class: "text" }, message.content);
    this.node = element("article", { class: "question", "aria-label": "You" }, text, this.#edit);
  }

  offer(isOffered) {
    this.#edit.hidden = !isOffered;
  }
}

/** A message of the model: its reasoning, which can be opened, its text, a note on how it ended, and its buttons. */
class Answer {
  #summary = element("summary");
  #thoughts = element("div", { class: "prose" });
  #prose = element("div", { class: "prose" });
  #note = element("p", { class: "note" });
  #figures = element("span", { class: "figures" });
  #reasoning = element("details", { class: "reasoning" }, this.#summary, this.#thoughts);
  #copy = button("Copy", ({ target }) => copyFrom(target, this.message.content));
  #retry;

  constructor(message, retry) {
    this.message = message;
    this.#retry = button("Regenerate", retry);
    const footer = element("footer", {}, this.#figures, this.#copy, this.#retry);
    const parts = [this.#reasoning, this.#prose, this.#note, footer];
    this.node = element("article", { class: "answer", "aria-label": message.model ?? "Answer" }, ...parts);
  }

  get text() {
    return [this.#prose.innerText, this.#note.innerText].filter(Boolean).join("\n");
  }

  offer(isOffered) {
    this.#retry.hidden = !isOffered;
    this.#retry.textContent = this.message.state === "done" ? "Regenerate" : "Try again";
  }

  draw(run) {
    const { message } = this;
    const state = message.state === "streaming" && !run ? "elsewhere" : message.state;
    const isStreaming = state === "streaming";
    this.node.dataset.state = state;
    this.node.ariaBusy = String(isStreaming);
    this.#reasoning.hidden = !message.reasoning;
    this.#summary.textContent = thinking(message, state);
    renderMarkdown(this.#thoughts, message.reasoning);
    renderMarkdown(this.#prose, message.content);
    this.#note.textContent = isStreaming ? waiting(message, run) : NOTES[state](message);
    this.#note.hidden = !this.#note.textContent;
    this.#figures.textContent = isStreaming ? "" : figures(message);
    this.#copy.hidden = isStreaming || !message.content;
  }
}

function thinking({ content, seconds }, state) {
  if (state === "streaming" && !content) return "Thinking…";
  return seconds?.thinking > MIN_SECONDS ? `Thought for ${seconds.thinking.toFixed(1)} s` : "Reasoning";
}

function waiting({ content, reasoning }, run) {
  return content || reasoning ? "" : run.waiting || "Waiting for the model…";
}

function figures({ usage, timings, seconds }) {
  if (!usage) return "";
  const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = usage;
  // Messages of earlier versions have no timings. The time for the first token is that of the prompt.
  const measured = seconds?.writing > MIN_SECONDS ? (tokens - 1) / seconds.writing : 0;
  const cached = details?.cached_tokens ? `, ${details.cached_tokens} of them cached` : "";
  const count = tokens === 1 ? "1 token" : `${tokens} tokens`;
  const reading = speed(timings?.prompt_per_second);
  const first = timings?.time_to_first_token_ms;
  return [
    count,
    speed(timings ? timings.predicted_per_second : measured),
    `prompt ${prompt}${cached}${reading && `, ${reading}`}`,
    first && `first token after ${(first / 1000).toFixed(2)} s`,
  ]
    .filter(Boolean)
    .join(" · ");
}

function speed(rate) {
  return rate ? `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : "";
}

function button(label, onclick) {
  return element("button", { type: "button", class: "quiet", onclick }, label);
}

function copyCode({ target }) {
  if (target.matches(".copy-code")) copyFrom(target, target.closest("figure").querySelector("code").textContent);
}

async function copyFrom(button, text) {
  await copy(text);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function isAtEnd(scroller) {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
}
