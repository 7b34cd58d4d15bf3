// A board that is looked at and played on: the picture, a layer of cells to pick, marks of moves, the board in words.

const SHOWN = 420; // pixels that a board is shown in, at most, in whole multiples of small pictures
const SWIPE = 24; // pixels that count as a swipe

class Board {
  // `play` is called with the action that a person chose, `refuse` with what is wrong with the choice.
  constructor(play, refuse) {
    Object.assign(this, { play, refuse, picked: null, cursor: 0, cells: [] });
    this.picture = el("img", { alt: "", draggable: "false" });
    this.grid = el("div", { class: "cells", role: "grid", hidden: true });
    this.marks = el("div", { class: "marks", "aria-hidden": "true" });
    this.inWords = el("div", { class: "unseen" });
    this.frame = el("div", { class: "frame" }, this.picture, this.grid, this.marks, this.inWords);
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.frame.addEventListener("pointerdown", (event) => (this.from = event));
    this.frame.addEventListener("pointerup", (event) => this.released(event));
    this.frame.addEventListener("pointercancel", () => (this.from = null));
  }

  // Shows a board; `legal`: the moves that can be played on it, none where it is not played on.
  show(task, seen, legal = []) {
    Object.assign(this, { task, seen, legal });
    const [width, height] = task.size;
    this.picture.src = seen.picture;
    this.picture.width = width * Math.max(1, Math.floor(SHOWN / width));
    this.picture.height = this.picture.width * height / width;
    this.frame.style.maxWidth = `${Math.min(SHOWN, this.picture.width)}px`;
    this.frame.classList.toggle("playable", legal.length > 0);
    const picks = legal.length > 0 && task.actions === "cells";
    this.marks.replaceChildren();
    this.showCells(picks);
    this.inWords.replaceChildren(...(picks ? [] : [boardTable(task, seen.board, "The board in words")]));
  }

  // Where a cell lies in the picture, in per cent.
  spot(cell) {
    const { task: { size: [width, height], px, cols }, seen: { shift } } = this;
    const [row, column] = [Math.floor(cell / cols), cell % cols];
    const share = (value, whole) => `${100 * value / whole}%`;
    return `left:${share(shift[1] + column * px, width)};top:${share(shift[0] + row * px, height)};width:${share(px, width)};height:${share(px, height)}`;
  }

  showCells(picks) {
    const { task } = this;
    this.grid.hidden = !picks;
    this.picked = null;
    if (!picks) return;
    this.grid.setAttribute("aria-label", "The board: pick two cells. Arrow keys move, Enter picks.");
    const focused = this.grid.contains(document.activeElement);
    if (this.cells.length !== task.rows * task.cols) {
      this.cells = Array.from({ length: task.rows * task.cols }, (_, i) => el("button", { type: "button", onclick: () => this.pick(i) }));
      this.cursor = 0;
      const rows = Array.from({ length: task.rows }, (_, row) => el("div", { role: "row" },
        this.cells.slice(row * task.cols, (row + 1) * task.cols).map((cell) => el("div", { role: "gridcell" }, cell))));
      this.grid.replaceChildren(...rows);
    }
    this.cells.forEach((cell, i) => (cell.style.cssText = this.spot(i)));
    this.label();
    if (focused) this.cells[this.cursor].focus();
  }

  label() {
    const { task, seen } = this;
    this.cells.forEach((cell, i) => {
      cell.tabIndex = i === this.cursor ? 0 : -1;
      cell.setAttribute("aria-pressed", String(i === this.picked));
      cell.setAttribute("aria-label", `${kindName(task, seen.board[Math.floor(i / task.cols)][i % task.cols])}, ${place(task, i)}`);
    });
  }

  key(event) {
    const { rows, cols } = this.task;
    const by = { ArrowUp: -cols, ArrowDown: cols, ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.picked = null;
    else if (by) {
      const to = this.cursor + by;
      const sameRow = Math.floor(to / cols) === Math.floor(this.cursor / cols);
      if (to >= 0 && to < rows * cols && (Math.abs(by) === cols || sameRow)) this.cursor = to;
      this.cells[this.cursor].focus();
    } else return;
    event.preventDefault();
    this.label();
  }

  pick(cell) {
    this.cursor = cell;
    if (this.picked === null || this.picked === cell) {
      this.picked = this.picked === cell ? null : cell;
      this.label();
    } else this.pair(this.picked, cell);
  }

  pair(one, other) {
    const move = this.legal.find(({ cells }) => cells.includes(one) && cells.includes(other));
    this.picked = null;
    this.label();
    if (move) this.play(move.action);
    else this.refuse("Those two don't go together. Try two others.");
  }

  // The end of a drag from cell to cell, or of a swipe.
  released(event) {
    const { from } = this;
    this.from = null;
    if (!from || !this.legal.length) return;
    if (this.task.actions === "cells") {
      const [one, other] = [from, event].map(({ clientX, clientY }) => this.cells.indexOf(document.elementFromPoint(clientX, clientY)));
      if (one >= 0 && other >= 0 && one !== other) this.pair(one, other);
      return;
    }
    const [across, down] = [event.clientX - from.clientX, event.clientY - from.clientY];
    if (Math.max(Math.abs(across), Math.abs(down)) < SWIPE) return;
    this.word(Math.abs(across) > Math.abs(down) ? (across > 0 ? "right" : "left") : down > 0 ? "down" : "up");
  }

  // Plays a word, where it is one of this game's; whether it is.
  word(text) {
    if (!this.legal.length || !this.task.words.includes(text)) return false;
    const move = this.legal.find((one) => one.text === text);
    if (move) this.play(move.action);
    else this.refuse(`Nothing can move ${text}. Try another way.`);
    return true;
  }

  // Marks the move that was played on this board, or that a hint gives.
  mark(move, kind = "played") {
    const cells = move.cells.map((cell) => el("i", { class: kind, style: this.spot(cell) }));
    const arrow = ARROWS[move.text] ? [el("span", { class: `arrow ${kind} at-${move.text}` }, ARROWS[move.text])] : [];
    this.marks.replaceChildren(...cells, ...arrow);
  }
}

const loaded = new Map(); // the tiles of a task, by their data

// The tiles of a task as an image, and the task as tiles.js wants it.
async function sheetOf(task) {
  if (!loaded.has(task.tiles)) {
    const image = new Image();
    image.src = task.tiles;
    loaded.set(task.tiles, image.decode().then(() => image));
  }
  return loaded.get(task.tiles);
}

const sheetTask = (task) => ({ ...task, columns: task.names.length, kinds: task.names.map((_, kind) => kind) });
