// One rollout, step by step: boards, words, rewards.

const MOVES_SHOWN = 12;
const BOARD = 340; // pixels that a board is shown in
const MARKS = ["W", "+", "·", "×", "?"]; // of the outcomes

const view = { rollout: -1, step: 0, turns: [], drawing: 0 };
const parts = {};

// What stays while rollouts and steps change.
function buildArticle() {
  const board = (name, part) => {
    parts[part] = el("canvas", { role: "img" });
    parts[`${part}Marks`] = el("div", { class: "marks", "aria-hidden": "true" });
    parts[`${part}Note`] = el("div", { class: "note" });
    return el("figure", { class: "board" }, el("figcaption", {}, name),
      el("div", { class: "frame" }, parts[part], parts[`${part}Marks`]), parts[`${part}Note`]);
  };
  const section = (name, part, tag) => {
    parts[part] = el(tag, tag === "pre" ? { tabindex: 0, "aria-label": name } : {});
    return el("section", {}, el("h4", {}, name), parts[part]);
  };
  parts.title = el("h3");
  parts.place = el("span", { class: "place", "aria-live": "polite" });
  parts.back = el("button", { type: "button", onclick: () => showStep(view.step - 1) }, "Previous step");
  parts.on = el("button", { type: "button", onclick: () => showStep(view.step + 1) }, "Next step");
  parts.strip = el("div", { class: "strip", role: "group", "aria-label": "Steps" });
  parts.marks = el("p", { class: "note" }, VIEWER.outcomes.map((name, i) => `${MARKS[i]} ${name}`).join(", ") + "; underlined twice: misread");
  parts.whole = el("pre", { tabindex: 0, "aria-label": "The whole answer" });
  parts.body = el("div", {},
    el("div", { class: "steps" }, parts.back, parts.on, parts.place), parts.strip, parts.marks,
    el("div", { class: "boards" }, board("As the model saw it", "seen"), board("As it described it", "told")),
    el("div", { class: "columns" },
      el("div", {}, section("What came of it", "facts", "dl"), section("Legal moves", "moves", "div")),
      el("div", {}, section("Thinking", "thinking", "pre"), section("Answer", "answer", "pre"),
        el("details", {}, el("summary", {}, "The whole answer"), parts.whole))));
  $("shown").append(parts.title, parts.body);
}

const isTraining = (i) => VIEWER.players[ROLLOUTS.player[i]] === VIEWER.training;

function titleOf(i) {
  return isTraining(i) ? `group ${ROLLOUTS.number[i]}, rollout ${ROLLOUTS.place[i]}` : `seed ${ROLLOUTS.number[i]}, board ${ROLLOUTS.place[i]}`;
}

function playerOf(i) {
  if (!isTraining(i)) return VIEWER.players[ROLLOUTS.player[i]];
  const [from, to] = [ROLLOUTS.from[i], ROLLOUTS.to[i]];
  return from === null ? "training" : from === to ? `policy ${from}` : `policy ${from}–${to}`;
}

// Shows a rollout from the first of its steps that `wanted` accepts.
async function showRollout(rollout, wanted = () => true) {
  const drawing = ++view.drawing;
  parts.body.hidden = rollout < 0;
  parts.title.textContent = rollout < 0 ? "No rollout matches these filters" : "";
  delete $("shown").dataset.shown;
  if (rollout < 0) return;
  const turns = await turnsOf(rollout);
  if (drawing !== view.drawing) return;
  Object.assign(view, { rollout, turns });
  parts.title.textContent = `${VIEWER.games[ROLLOUTS.game[rollout]]}, ${playerOf(rollout)}, ${titleOf(rollout)}`;
  parts.strip.hidden = parts.marks.hidden = parts.back.hidden = parts.on.hidden = turns.length < 2;
  parts.strip.replaceChildren(...turns.map((turn, i) => {
    const name = `step ${i + 1}: ${VIEWER.outcomes[turn.outcome]}${turn.exact === false ? ", misread" : ""}`;
    return el("button", {
      type: "button", tabindex: -1, "aria-label": name, title: name, class: `outcome-${turn.outcome}${turn.exact === false ? " misread" : ""}`,
      onclick: () => showStep(i),
    }, MARKS[turn.outcome]);
  }));
  await showStep(Math.max(0, turns.findIndex(wanted)));
}

async function showStep(step) {
  if (step < 0 || step >= view.turns.length) return;
  const drawing = ++view.drawing;
  const turn = view.turns[step];
  const sheet = await sheetOf(turn.state.sheet);
  if (drawing !== view.drawing) return;
  view.step = step;
  parts.place.textContent = view.turns.length > 1 ? `step ${step + 1} of ${view.turns.length}` : "one step";
  parts.back.disabled = step === 0;
  parts.on.disabled = step === view.turns.length - 1;
  [...parts.strip.children].forEach((button, i) => {
    button.toggleAttribute("aria-current", i === step);
    if (i === step) parts.strip.scrollTop = button.offsetTop - parts.strip.offsetTop - 40;
  });
  showBoards(turn, sheet);
  showFacts(turn);
  showMoves(turn);
  for (const [part, text] of [["thinking", turn.thinking], ["answer", turn.answer], ["whole", turn.text]]) {
    parts[part].textContent = (text ?? "").trim();
    parts[part].classList.toggle("none", !(text ?? "").trim());
  }
  $("shown").dataset.shown = `${view.rollout}:${step}`;
}

function showBoards(turn, sheet) {
  const { state } = turn;
  drawSeen(parts.seen, sheet, state);
  // Whole multiples of small pictures, so that their pixels stay squares.
  const width = state.task.size[0];
  for (const part of ["seen", "told"]) parts[part].style.width = `${Math.min(BOARD, width) * Math.max(1, Math.floor(BOARD / width))}px`;
  parts.seen.setAttribute("aria-label", "The board: " + inWords(trueWords(state)));
  markCells(turn.move);
  const described = turn.exact !== undefined;
  parts.told.closest("figure").hidden = !described;
  if (!described) return;
  drawTold(parts.told, sheet, turn);
  const wrong = wrongCells(turn);
  const notes = turn.exact ? ["Every cell is right."] : [...shapeProblems(turn),
    ...wrong.slice(0, MOVES_SHOWN).map(({ row, column, word, truth }) => `Row ${row}, column ${column}: told ${word}, is ${truth}.`),
    wrong.length > MOVES_SHOWN ? `And ${wrong.length - MOVES_SHOWN} more.` : ""];
  parts.toldNote.replaceChildren(el("ul", {}, notes.filter(Boolean).map((note) => el("li", {}, note))));
  parts.told.setAttribute("aria-label", "The board as described: " + inWords(toldBoard(turn)));
}

const inWords = (lines) => lines.map((line, i) => `row ${i}: ${line.join(", ")}`).join("; ");

// Frames the cells that a move names, such as (0, 1) (2, 3), on the board.
function markCells(move) {
  const { task, shift } = view.turns[view.step].state;
  const [width, height] = task.size;
  const cells = [...(move ?? "").matchAll(/\((\d+), (\d+)\)/g)].map(([, row, column]) => [Number(row), Number(column)]);
  parts.seenMarks.replaceChildren(...cells.map(([row, column]) => el("i", {
    style: `left:${(100 * (shift[1] + column * task.px)) / width}%;top:${(100 * (shift[0] + row * task.px)) / height}%;` +
      `width:${(100 * task.px) / width}%;height:${(100 * task.px) / height}%`,
  })));
}

const bestOf = (turn) => (turn.state.moves.length ? turn.state.moves[0][0] : turn.reward_game);

function showFacts(turn) {
  const advantage = ROLLOUTS.advantage[view.rollout];
  const share = filled(turn.share) && turn.exact !== undefined ? percent(turn.share) : null;
  const rewards = [["game", turn.reward_game], ["format", turn.reward_format], ["cells", filled(turn.reward) ? turn.share : null]];
  const facts = [
    ["outcome", VIEWER.outcomes[turn.outcome] + (turn.cause ? `: ${turn.cause}` : "")],
    ["reward", filled(turn.reward) ? num(turn.reward) : num(turn.reward_game)],
    ["its parts, unweighted", filled(turn.reward) ? rewards.filter(([, x]) => filled(x)).map(([name, x]) => `${name} ${num(x)}`).join(", ") : null],
    ["regret", num(bestOf(turn) - turn.reward_game)],
    ["advantage in its group", filled(advantage) ? signed(advantage) : null],
    ["adds to the score", num(turn.gain)],
    ["cells right", share],
    ["answer", turn.tokens ? `${num(turn.tokens)} tokens${turn.cut ? ", cut off" : ""}` : null],
    ["prompt", turn.prompt_tokens ? `${num(turn.prompt_tokens)} tokens` : null],
    ["took", turn.seconds ? `${num(turn.seconds)} s` : null],
    ["policy", turn.versions ? [...new Set(turn.versions)].join("–") : null],
  ];
  parts.facts.replaceChildren(...facts.filter(([, value]) => filled(value) && value !== "")
    .map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value))));
}

function showMoves(turn) {
  const best = bestOf(turn);
  const legal = turn.state.moves.flatMap(([reward, names]) => names.map((name) => ({ name, reward })));
  const isLegal = legal.some(({ name }) => name === turn.move);
  const row = ({ name, reward }) => {
    const played = name === turn.move;
    return el("tr", { "aria-current": played && "true", onpointerenter: () => markCells(name), onpointerleave: () => markCells(turn.move) },
      el("th", { scope: "row" }, name, played ? el("em", {}, "played") : null),
      el("td", { class: "number" }, num(reward)), el("td", { class: "number" }, num(best - reward)));
  };
  const table = (rows) => el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "move"),
    el("th", { scope: "col", class: "number" }, "reward"), el("th", { scope: "col", class: "number" }, "regret"))), el("tbody", {}, rows));
  const other = el("tr", { class: "other", "aria-current": "true" },
    el("th", { scope: "row" }, turn.move ?? "no move", el("em", {}, turn.move ? "played, illegal" : "unreadable")),
    el("td", { class: "number" }, num(turn.reward_game)), el("td", { class: "number" }, num(best - turn.reward_game)));
  // The move that was played stands among those that are shown at once.
  const first = legal.slice(0, MOVES_SHOWN);
  const rest = legal.slice(MOVES_SHOWN);
  const late = rest.filter(({ name }) => name === turn.move);
  parts.moves.replaceChildren(table([...(isLegal ? [] : [other]), ...[...first, ...late].map(row)]));
  const more = rest.filter(({ name }) => name !== turn.move);
  if (more.length) parts.moves.append(el("details", {}, el("summary", {}, `${num(more.length)} more`), table(more.map(row))));
}
