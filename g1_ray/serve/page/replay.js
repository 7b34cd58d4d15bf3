// A replay: the games of a link, looked at move by move.

const CHUNK = 100; // boards that are asked for at once
const REPLAY_MS = 700; // between two boards that play by themselves

class Replay {
  constructor(link) {
    Object.assign(this, { link, at: 0, chunks: new Map(), playing: false });
    this.slider = $("scrub");
    this.slider.oninput = () => this.show(Number(this.slider.value));
    $("replay-play").onclick = () => this.toggle();
    $("replay-back").onclick = () => this.step(-1);
    $("replay-on").onclick = () => this.step(1);
  }

  async open() {
    const first = await this.chunk(0, 0);
    const { players, moves, task, game, seed } = first;
    Object.assign(this, { moves, task, players, last: Math.max(...moves) });
    $("replay-title").textContent = `${titleOf(task.game, task.reasoning)}, played by ${[...new Set(players)].join(" and ") || "nobody"}`;
    $("replay-about").textContent = `${game}, seed ${seed}`;
    this.slider.max = this.last;
    this.boards = players.map((player) => {
      const board = new Board(() => {}, () => {});
      const [count, move] = [el("p", { class: "count" }), el("p", { class: "result" })];
      return { board, count, move, node: el("section", { class: "lane", "aria-label": player || "nobody" },
        el("div", { class: "head" }, el("h3", {}, player || "nobody"), count),
        el("div", { class: "boards" }, el("figure", { class: "board" }, board.frame)), el("div", { class: "facts" }, move)) };
    });
    $("replay-lanes").replaceChildren(...this.boards.map(({ node }) => node));
    $("replay-lanes").dataset.count = players.length;
    $("again").hidden = false;
    await this.show(0);
  }

  // The boards of a lane from a multiple of CHUNK on.
  chunk(lane, number) {
    const key = `${lane}:${number}`;
    if (!this.chunks.has(key)) {
      const asked = ask("/api/replay", { body: { link: this.link, lane, start: number * CHUNK, count: CHUNK } });
      asked.catch(() => this.chunks.delete(key));
      this.chunks.set(key, asked);
    }
    return this.chunks.get(key);
  }

  async frame(lane, at) {
    const number = Math.min(at, this.moves[lane]);
    const { frames } = await this.chunk(lane, Math.floor(number / CHUNK));
    return frames[number % CHUNK];
  }

  async show(at) {
    this.at = Math.max(0, Math.min(at, this.last));
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", `move ${this.at} of ${this.last}`);
    $("replay-place").textContent = `${this.at} of ${this.last}`;
    $("replay-back").disabled = this.at === 0;
    $("replay-on").disabled = this.at === this.last;
    const wanted = this.at;
    try {
      const frames = await Promise.all(this.boards.map((_, lane) => this.frame(lane, wanted)));
      if (wanted === this.at) frames.forEach((frame, lane) => this.draw(this.boards[lane], frame));
    } catch (error) {
      this.stop();
      note(error.message);
    }
  }

  draw({ board, count, move }, frame) {
    board.show(this.task, frame);
    count.textContent = `${points(frame.score)} · ${frame.number} ${frame.number === 1 ? "move" : "moves"}`;
    if (frame.move) board.mark(frame.move);
    const { move: next } = frame;
    move.textContent = next
      ? `Next: ${next.action === null ? "an answer that can't be read" : moveName(this.task, next)}${next.legal ? `, ${signed(next.gain)}` : ", not allowed"}.`
      : frame.over ? `The end: ${points(frame.score)}.` : `So far: ${points(frame.score)}.`;
  }

  step(by) {
    this.stop();
    return this.show(this.at + by);
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.at === this.last) this.show(0);
    this.playing = true;
    $("replay-play").textContent = "Pause";
    return this.run();
  }

  async run() {
    while (this.playing && this.at < this.last) {
      await sleep(REPLAY_MS);
      if (this.playing) await this.show(this.at + 1);
    }
    this.stop();
  }

  stop() {
    this.playing = false;
    $("replay-play").textContent = "Play";
  }
}
