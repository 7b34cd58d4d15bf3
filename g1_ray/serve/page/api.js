// Speaks with the server: again where it is busy or gone for a moment. A move has its revision, so that none is doubled.

const WAITS = [400, 800, 1500, 3000]; // ms between two tries; the last one from then on
const TRIES = 20;

class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }

  // Whether it may go better in a moment.
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// The JSON of a path; of a POST where there is a body. `words` is called with what a model says as it comes.
async function ask(path, { body, words, signal } = {}) {
  for (let tries = 1; ; tries++) {
    try {
      const answer = await once(path, body, words, signal);
      if (tries > 1) note("");
      return answer;
    } catch (error) {
      if (signal?.aborted || !error.passes || tries === TRIES) throw error;
      note(error.status === 429 ? "The model is busy. Trying again …" : "Reconnecting …");
      await sleep(WAITS[Math.min(tries, WAITS.length) - 1]);
    }
  }
}

const lost = () => {
  throw new Refusal(0, "lost", "The server can't be reached.");
};

async function once(path, body, words, signal) {
  const headers = { accept: words ? "text/event-stream" : "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  const asked = { method: body === undefined ? "GET" : "POST", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, asked).catch(lost);
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    throw new Refusal(response.status, error?.code ?? "", error?.message ?? `The server answered ${response.status}.`);
  }
  if (!response.headers.get("content-type").startsWith("text/event-stream")) return response.json().catch(lost);
  for await (const event of eventsOf(response.body)) {
    if (event.type === "error") throw new Refusal(event.status, event.code, event.message);
    if (event.type !== "words") return event;
    words(event);
  }
  return lost();
}

// The events of a stream of the type text/event-stream, as routes.py writes them: one line of JSON each.
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let kept = ""; ;) {
      const { value, done } = await reader.read().catch(lost);
      if (done) return;
      const events = (kept + value).split("\n\n");
      kept = events.pop();
      for (const event of events) yield JSON.parse(event.slice("data: ".length));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// What a browser keeps, where it lets us.
const kept = {
  get(name) {
    try {
      return localStorage.getItem(`g1_ray.${name}`) ?? "";
    } catch {
      return "";
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`g1_ray.${name}`, value);
    } catch {
      // a private window: it is forgotten
    }
  },
};

// A line about the connection, or about what is wrong.
function note(text) {
  $("note").textContent = text;
}

// A line that screen readers say.
function say(text) {
  $("said").textContent = text;
}
