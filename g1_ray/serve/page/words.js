// Games, players and moves in words.

const ARROWS = { up: "↑", right: "→", down: "↓", left: "←" };
const CLASSIC = {
  uniform: "any move, mistakes too",
  "random-legal": "any legal move",
  greedy: "the most points at once",
  oracle: "the best move known",
};

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const points = (value) => (value === 1 ? "1 point" : `${num(value)} points`);
const isMachine = (lane) => lane.seat !== "person";
const playerName = (seat) => (seat === "person" ? "You" : seat);
const kindName = (task, kind) => (kind === 0 ? "empty" : task.names[kind]);
const place = (task, cell) => `row ${Math.floor(cell / task.cols) + 1}, column ${(cell % task.cols) + 1}`;

// "2048 · 3 × 3"
function titleOf(game, reasoning = {}) {
  const { size, rows = size, cols = size } = reasoning;
  const name = game === "2048" ? game : capital(game.replaceAll("-", " "));
  return rows ? `${name} · ${rows} × ${cols}` : name;
}

// A move in words: "left"; "row 1, column 2 with row 1, column 3".
function moveName(task, move) {
  if (move.cells.length) return move.cells.map((cell) => place(task, cell)).join(" with ");
  return move.text || "no move that can be read";
}

// What came of a move, in a sentence.
function moveSentence(task, move) {
  const who = move.by === "person" ? "You" : move.by;
  if (move.action === null) return `${who} gave no move that can be read.`;
  const played = `${who} played ${moveName(task, move)}`;
  if (!move.legal) return `${played}: not allowed, nothing happens.`;
  return `${played}: ${move.gain ? `${signed(move.gain)} ${Math.abs(move.gain) === 1 ? "point" : "points"}` : "no points"}.`;
}

// How a description compares with the board, in sentences.
function readSentences(task, board, answer) {
  if (!answer.told.length) return ["It described no board."];
  if (answer.exact || (answer.exact === undefined && answer.whole && !answer.wrong.length)) return [`It read all ${answer.cells} cells right.`];
  const wrong = answer.wrong.slice(0, 4).map(([row, column]) =>
    `${capital(place(task, row * task.cols + column))}: it says ${short(answer.told[row][column]) || "nothing"}, it is ${kindName(task, board[row][column])}.`);
  const more = answer.wrong.length - wrong.length;
  return [`It read ${answer.right} of ${answer.cells} cells right.`, ...wrong, more > 0 ? `And ${more} more.` : ""].filter(Boolean);
}

// A board as a table in words.
function boardTable(task, board, caption) {
  const heads = Array.from({ length: task.cols }, (_, i) => el("th", { scope: "col" }, `column ${i + 1}`));
  return el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, el("td"), heads)),
    el("tbody", {}, board.map((line, i) => el("tr", {}, el("th", { scope: "row" }, `row ${i + 1}`),
      line.map((kind) => el("td", {}, kindName(task, kind)))))));
}

// Every legal move with what it earns, the best first; the one that was played is marked.
function optionsTable(task, options, played) {
  const most = Math.max(1e-9, ...options.map(({ gain }) => gain));
  const row = (option) => el("tr", { "aria-current": option.action === played ? "true" : null },
    el("th", { scope: "row" }, capital(moveName(task, option)), option.action === played ? el("em", {}, "played") : ""),
    el("td", { class: "number" }, num(option.gain), el("span", { class: "bar", "aria-hidden": "true" },
      el("i", { style: `width:${Math.max(0, 100 * option.gain / most)}%` }))));
  const table = (rows) => el("table", { class: "options" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Move"),
    el("th", { scope: "col", class: "number" }, "Points"))), el("tbody", {}, rows));
  const shown = options.filter((option, i) => i < 8 || option.action === played);
  const rest = options.filter((option) => !shown.includes(option));
  return [table(shown.map(row)), rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), table(rest.map(row))) : ""].filter(Boolean);
}
