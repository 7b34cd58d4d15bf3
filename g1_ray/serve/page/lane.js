// One copy of the board and whoever plays it: what it sees, what it says that it sees, its move and what that earned.

class Lane {
  // `game`: the session it belongs to (arena.js).
  constructor(game, view) {
    Object.assign(this, { game, view, looking: null, busy: false, running: false, owed: 0 });
    this.board = new Board((action) => game.play(this, action), (text) => this.tell(text));
    this.build();
    this.rest();
  }

  get task() {
    return this.game.task;
  }

  build() {
    const button = (text, act, more = {}) => el("button", { type: "button", onclick: act, ...more }, text);
    this.title = el("h3", { id: `lane-${this.view.lane}` });
    this.count = el("p", { class: "count" });
    this.caption = el("figcaption");
    this.told = el("canvas", { role: "img" });
    this.toldCaption = el("figcaption");
    this.toldNote = el("div", { class: "reading" });
    this.toldFigure = el("figure", { class: "board told", hidden: true }, this.toldCaption, el("div", { class: "frame" }, this.told), this.toldNote);
    this.result = el("p", { class: "result" });
    this.pad = el("div", { class: "pad", role: "group", "aria-label": "Moves" });
    this.hint = button("Hint", () => this.game.hint(this));
    this.undo = button("Undo", () => this.game.undo(this));
    this.swap = button("", () => this.game.swapSeat(this));
    this.back = button("‹", () => this.game.look(this, -1), { "aria-label": "The move before", title: "The move before" });
    this.on = button("›", () => this.game.look(this, 1), { "aria-label": "The move after", title: "The move after" });
    this.backOn = el("span", { class: "backon", role: "group", "aria-label": "Look back" }, this.back, this.on);
    this.thinking = el("pre", { tabindex: 0, "aria-label": "Its thinking" });
    this.thinkingPart = el("section", { class: "thinking", hidden: true }, el("h4", {}, "Its thinking"), this.thinking);
    this.options = el("div");
    this.optionsPart = el("details", { hidden: true, open: isMachine(this.view) }, el("summary", {}, "What every move would have earned"), this.options);
    this.sight = el("div");
    this.sightPart = el("details", { hidden: true }, el("summary", {}, "How well it sees so far"), this.sight);
    this.node = el("section", { class: "lane", "aria-labelledby": this.title.id },
      el("div", { class: "head" }, this.title, this.count),
      el("div", { class: "boards" }, el("figure", { class: "board" }, this.caption, this.board.frame, this.pad), this.toldFigure),
      el("div", { class: "facts" }, this.result,
        el("div", { class: "acts" }, this.hint, this.undo, this.swap, this.backOn),
        this.thinkingPart, this.optionsPart, this.sightPart));
  }

  // The board as it stands, with nobody at a move; `keep`: beside what was said of the one before.
  rest(keep = false) {
    const { view, task } = this;
    this.looking = null;
    const plays = !isMachine(view) && !view.over;
    this.caption.textContent = view.over ? "The board at the end" : isMachine(view) ? `What ${view.seat} sees` : "Your board";
    this.board.show(task, view, plays ? view.legal : []);
    this.showPad(plays);
    if (keep && !this.toldFigure.hidden) this.toldCaption.textContent = `What ${view.seat} said it saw before`;
    else this.toldFigure.hidden = this.thinkingPart.hidden = this.optionsPart.hidden = true;
    this.heads();
    if (view.over) this.result.textContent = this.ending();
    else if (plays && !view.moves) this.result.textContent = this.manual();
  }

  // What a person is to do.
  manual() {
    if (this.task.actions === "cells") return "Your turn: pick two cells.";
    if (this.task.words.some((word) => ARROWS[word])) return "Your turn: press an arrow key, or swipe.";
    return "Your turn: pick a move.";
  }

  ending() {
    const { seat, won, score, moves } = this.view;
    const who = playerName(seat);
    return `${won ? `${who} won` : "The game is over"}: ${points(score)} in ${moves} ${moves === 1 ? "move" : "moves"}.`;
  }

  heads() {
    const { view, game } = this;
    const about = CLASSIC[view.seat] ? ` (${CLASSIC[view.seat]})` : "";
    this.title.textContent = `${playerName(view.seat)}${about}`;
    this.count.textContent = `${points(view.score)} · ${view.moves} ${view.moves === 1 ? "move" : "moves"}${view.helped ? " · with help" : ""}`;
    this.hint.hidden = isMachine(view) || view.over;
    this.hint.disabled = this.busy;
    this.undo.disabled = this.busy || !view.moves;
    this.swap.hidden = view.over;
    this.swap.textContent = isMachine(view) ? "Take over" : `Let ${game.machineFor(this)} play`;
    this.backOn.hidden = !view.moves;
    this.back.disabled = (this.looking ?? view.moves) < 1;
    this.on.disabled = this.looking === null;
    this.sightPart.hidden = !view.boards_described;
    if (view.boards_described) this.sight.replaceChildren(...sightOf(view));
  }

  showPad(plays) {
    const { task, view, board } = this;
    this.pad.hidden = !plays || task.actions === "cells";
    if (this.pad.hidden) return this.pad.replaceChildren();
    if (!this.pad.children.length) {
      this.pad.classList.toggle("arrows", task.words.every((word) => ARROWS[word]));
      const moves = task.words.length ? task.words : view.legal.map(({ text }) => text);
      this.pad.append(...moves.map((text) => el("button", { type: "button", class: `to-${text}`, "aria-label": text, onclick: () => board.word(text) }, ARROWS[text] ?? text)));
    }
    return undefined;
  }

  // The model looks at the board as it stands.
  asking() {
    this.rest();
    this.result.textContent = `${this.view.seat} is looking …`;
    this.hearing({ told: [], wrong: [], thinking: null, text: "" });
  }

  // What the model has said so far.
  hearing(answer) {
    if (this.game.isModel(this.view.seat)) this.showAnswer(answer, this.board.seen.board, this.view.seat);
  }

  // The move that was made on a board that was seen.
  answered(seen, move) {
    this.caption.textContent = move.by === "person" ? "The board then" : `What ${move.by} saw`;
    this.board.show(this.task, seen);
    this.showPad(false);
    this.board.mark(move);
    if (move.answer) this.showAnswer(move.answer, seen.board, move.by);
    else this.toldFigure.hidden = this.thinkingPart.hidden = true;
    this.tell(moveSentence(this.task, move), move.answer ? readSentences(this.task, seen.board, move.answer)[0] : "");
    this.heads();
  }

  showAnswer(answer, board, by) {
    const { task } = this;
    this.answer = answer;
    this.toldFigure.hidden = false;
    this.toldCaption.textContent = `What ${by} says it sees`;
    this.told.setAttribute("aria-label", `The board as ${by} tells it: ${answer.told.map((line) => line.map(short).join(", ")).join("; ") || "nothing yet"}`);
    this.told.style.width = this.board.frame.style.maxWidth;
    sheetOf(task).then((sheet) => {
      if (this.answer === answer) drawDescription(this.told, sheet, sheetTask(task), answer.told, answer.wrong, [task.rows, task.cols]);
    });
    const whole = answer.exact !== undefined;
    const said = answer.told.length && (whole || answer.wrong.length) ? readSentences(task, board, answer) : [];
    this.toldNote.classList.toggle("misread", answer.wrong.length > 0);
    this.toldNote.replaceChildren(...(whole ? said : said.slice(1)).map((line) => el("p", {}, line)));
    // Where it has not come to thinking, or does none, what it says is shown as it comes.
    const thinking = (answer.thinking ?? answer.text.split("<think>")[1] ?? (whole ? answer.text : "")).trim();
    this.thinkingPart.hidden = false;
    this.thinking.textContent = thinking || (whole ? "Nothing." : "…");
  }

  showOptions(move) {
    this.optionsPart.hidden = false;
    this.options.replaceChildren(...optionsTable(this.task, move.options, move.action));
  }

  // A sentence that is shown, and said.
  tell(text, more = "") {
    this.result.textContent = text;
    say(`${text} ${more}`.trim());
  }
}

// How often a player's boards were right, and how often its move scored then.
function sightOf(view) {
  const line = (term, value, what) => el("div", {}, el("dt", {}, term), el("dd", {}, value, el("small", {}, ` ${what}`)));
  const boards = `${view.boards_described} ${view.boards_described === 1 ? "board" : "boards"}`;
  return [el("dl", {}, line("Read the whole board right (P_acc)", percent(view.p_acc), `of ${boards}`),
    line("Scored when it had read it right (R_acc)", view.r_acc === null ? "–" : percent(view.r_acc), ""))];
}
