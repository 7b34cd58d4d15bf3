// A session: its lanes, who moves when, and what a person does.

const DELAYS = [3000, 1800, 1000, 500, 150, 0]; // ms between a machine's moves, by speed

class Game {
  constructor(session, catalog, model) {
    const { id, game, task, seed, name } = session;
    Object.assign(this, { id, label: game, task, seed, name, catalog, model, going: false, stopped: false, waits: $("waits").checked });
    this.seats = session.lanes.map(({ seat }) => seat);
    this.ended = new AbortController();
    this.lanes = session.lanes.map((view) => new Lane(this, view));
    const nodes = this.lanes.map(({ node }) => node);
    $("lanes").replaceChildren(...nodes);
    $("lanes").dataset.count = nodes.length;
    this.settle();
  }

  get path() {
    return `/api/sessions/${this.id}`;
  }

  get person() {
    return this.lanes.find(({ view }) => !isMachine(view));
  }

  isModel(seat) {
    return this.catalog.models.some(({ name }) => name === seat);
  }

  // Who takes a lane where a person hands it over.
  machineFor(lane) {
    return lane.machine ?? this.model;
  }

  // Leaves it: nothing of it is shown or asked for any more.
  leave() {
    this.ended.abort();
    this.lanes.forEach((lane) => lane.asked?.abort());
  }

  // What belongs to all lanes: the controls, and who is on the move.
  settle() {
    const machines = this.lanes.filter(({ view }) => isMachine(view));
    const live = machines.some(({ view }) => !view.over);
    $("watching").hidden = !live;
    $("go").textContent = this.going ? "Pause" : "Go on";
    $("waits-label").hidden = !(this.person && machines.length);
    this.lanes.forEach((lane) => this.run(lane));
    this.result();
  }

  // Who has won a race.
  result() {
    const ended = this.lanes.length > 1 && this.lanes.every(({ view }) => view.over);
    $("outcome").hidden = !ended;
    if (!ended || $("outcome").textContent) return;
    const best = Math.max(...this.lanes.map(({ view }) => view.score));
    const first = this.lanes.filter(({ view }) => view.score === best).map(({ view }) => view.seat);
    const you = first[0] === "person";
    $("outcome").textContent = first.length > 1 ? `A draw: ${points(best)} each.` : `${playerName(first[0])} ${you ? "win" : "wins"} the race with ${points(best)}!`;
    say($("outcome").textContent);
  }

  // Whether the machine of a lane is to move.
  moves(lane) {
    const { view } = lane;
    if (this.ended.signal.aborted || lane.busy || !isMachine(view) || view.over) return false;
    if (lane.owed > 0) return true;
    const { person } = this;
    return this.going && !(this.waits && person && !person.view.over && view.moves >= person.view.moves);
  }

  async run(lane) {
    if (lane.running || !this.moves(lane)) return;
    lane.running = true;
    let done;
    lane.done = new Promise((resolve) => (done = resolve));
    try {
      while (this.moves(lane)) {
        lane.owed = Math.max(0, lane.owed - 1);
        await this.machineMove(lane);
        if (this.moves(lane) || lane.view.over || this.person) await this.linger();
      }
    } catch (error) {
      this.failed(error, lane);
    } finally {
      lane.running = false;
      done();
    }
    if (this.ended.signal.aborted) return;
    if (isMachine(lane.view) && (lane.view.over || (this.person && this.going))) lane.rest(!lane.view.over);
    this.settle();
  }

  // Long enough to see what happened; a pause or another speed ends it.
  linger() {
    const still = DELAYS[Number($("speed").value)];
    return Promise.race([sleep(still), new Promise((done) => (this.hurry = done))]);
  }

  async machineMove(lane) {
    const { view } = lane;
    const asked = (lane.asked = new AbortController());
    lane.asking();
    const answer = await ask(`${this.path}/lanes/${view.lane}/moves`, {
      body: { revision: view.revision }, words: (event) => lane.hearing(event.answer), signal: asked.signal,
    });
    if (asked.signal.aborted) return;
    lane.view = answer;
    lane.answered(view, answer.last);
    await this.tellOptions(lane, answer.last);
  }

  // What every move would have earned, beside the one that was made.
  async tellOptions(lane, move) {
    const whole = await ask(`${this.path}/lanes/${lane.view.lane}/moves/${move.number}`, { signal: this.ended.signal });
    lane.showOptions(whole);
    return whole;
  }

  // What a person does on a lane: one thing at a time, at the revision that is shown.
  async act(lane, what, body, then) {
    if (lane.busy) return;
    lane.busy = true;
    note("");
    const now = () => ask(`${this.path}/lanes/${lane.view.lane}/${what}`, { body: { revision: lane.view.revision, ...body }, signal: this.ended.signal });
    try {
      const answer = await now().catch(async (error) => {
        // Whoever sits down does so after the move that came in between.
        if (what !== "seat" || error.code !== "stale") throw error;
        await this.reload();
        return now();
      });
      if (!this.ended.signal.aborted) await then(answer);
    } catch (error) {
      await this.failed(error, lane);
    } finally {
      lane.busy = false;
      if (!this.ended.signal.aborted) lane.heads();
    }
    if (!this.ended.signal.aborted) this.settle();
  }

  play(lane, action) {
    return this.act(lane, "moves", { action }, async (view) => {
      lane.view = view;
      lane.rest();
      const sentence = moveSentence(this.task, view.last);
      lane.tell(view.over ? `${sentence} ${lane.ending()}` : sentence);
      if (!this.going && this.lanes.length > 1 && !this.stopped) this.going = true;
      this.tellOptions(lane, view.last).catch(() => {});
    });
  }

  undo(lane) {
    this.pause();
    lane.asked?.abort();
    return this.act(lane, "undo", {}, (view) => {
      lane.view = view;
      lane.rest();
      $("outcome").textContent = "";
      lane.tell("Taken back.");
    });
  }

  hint(lane) {
    return this.act(lane, "hint", {}, ({ lane: view, oracle, options }) => {
      lane.view = view;
      lane.rest();
      lane.board.mark(oracle, "hint");
      lane.tell(`Try ${moveName(this.task, oracle)}: ${points(oracle.gain)}.`);
      lane.showOptions({ options, action: null });
    });
  }

  // A person takes over, or hands back.
  swapSeat(lane) {
    const taken = isMachine(lane.view);
    if (taken) lane.machine = lane.view.seat;
    lane.asked?.abort();
    return this.act(lane, "seat", { seat: taken ? "person" : this.machineFor(lane) }, (view) => {
      lane.view = view;
      lane.rest();
      lane.tell(taken ? `You play now. ${lane.manual()}` : `${view.seat} plays now.`);
      this.going = this.lanes.some((one) => isMachine(one.view));
      this.stopped = false;
      if (taken) (lane.board.cells[lane.board.cursor] ?? lane.pad.querySelector("button"))?.focus();
    });
  }

  // Looks at the move before, or after, the one that is looked at.
  async look(lane, by) {
    this.pause();
    const to = (lane.looking ?? lane.view.moves) + by;
    if (to < 0 || lane.busy) return;
    await lane.done; // what it says now is heard to its end
    try {
      if (to >= lane.view.moves) {
        lane.rest();
        lane.tell(lane.view.over ? lane.ending() : "The board as it stands.");
      } else {
        const move = await ask(`${this.path}/lanes/${lane.view.lane}/moves/${to}`, { signal: this.ended.signal });
        lane.looking = to;
        lane.answered(move, move);
        lane.showOptions(move);
      }
    } catch (error) {
      await this.failed(error, lane);
    }
  }

  pause() {
    this.going = false;
    this.stopped = true;
    this.hurry?.();
    this.settle();
  }

  goOn() {
    Object.assign(this, { going: true, stopped: false });
    this.settle();
  }

  step() {
    this.pause();
    this.lanes.forEach((lane) => (lane.owed = isMachine(lane.view) && !lane.running ? 1 : 0));
    this.settle();
  }

  // What was refused: the game is looked at again where another window has played on.
  async failed(error, lane) {
    if (error.name === "AbortError" || this.ended.signal.aborted) return;
    if (!(error instanceof Refusal)) throw error;
    if (error.status !== 409) {
      this.going = false;
      lane.tell(error.message);
      return note(error.passes ? "The server does not answer. Press Go on, or play, to try again." : "");
    }
    await this.reload();
    lane.tell("Here is how the game stands now.");
  }

  // The lanes as the server has them.
  async reload() {
    const session = await ask(this.path, { signal: this.ended.signal });
    session.lanes.forEach((view, i) => {
      const other = this.lanes[i];
      if (other.view.revision === view.revision) return;
      other.asked?.abort();
      other.view = view;
      other.rest();
    });
  }
}
