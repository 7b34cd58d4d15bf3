// Blocks of rollouts, opened when they are needed, and pictures of boards, put together from the tiles of a sheet.

const VIEWER = DATA.viewer;
const ROLLOUTS = VIEWER.rollouts;
const TOTAL = (ROLLOUTS.game ?? []).length;
const KEPT_BLOCKS = 8;

const opened = new Map(); // number of a block -> promise of it, the newest last

async function openBlock(number) {
  const text = document.getElementsByClassName("block")[number].textContent;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

// The turns of a rollout, each with the state that it was made in.
async function turnsOf(rollout) {
  const number = Math.floor(rollout / VIEWER.block);
  if (!opened.has(number)) opened.set(number, openBlock(number));
  if (opened.size > KEPT_BLOCKS) opened.delete(opened.keys().next().value);
  const block = await opened.get(number);
  return block.rollouts[rollout % VIEWER.block].map((turn) => ({ ...turn, state: stateOf(block.states[turn.state]) }));
}

function stateOf({ task, tiles, shift, moves }) {
  const bytes = Uint8Array.from(atob(tiles), (letter) => letter.charCodeAt(0));
  const numbers = Array.from({ length: bytes.length / 2 }, (_, i) => bytes[2 * i] + 256 * bytes[2 * i + 1]);
  return { task: VIEWER.tasks[task], sheet: task, tiles: numbers, shift, moves };
}

const sheets = [];

function sheetOf(number) {
  sheets[number] ??= (async () => {
    const image = new Image();
    image.src = "data:image/png;base64," + document.getElementsByClassName("sheet")[number].textContent;
    await image.decode();
    return image;
  })();
  return sheets[number];
}

// The picture as the model saw it, pixel by pixel.
function drawSeen(canvas, sheet, { task, tiles, shift }) {
  [canvas.width, canvas.height] = task.size;
  const context = canvas.getContext("2d");
  context.fillStyle = `rgb(${task.margin})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  tiles.forEach((tile, i) => {
    const [row, column] = [Math.floor(i / task.cols), i % task.cols];
    drawTile(context, sheet, task, tile, shift[1] + column * task.px, shift[0] + row * task.px, task.px);
  });
}

const kindAt = ({ task, tiles }, row, column) => task.kinds[tiles[row * task.cols + column]];
const toldBoard = (turn) => (turn.exact ? trueWords(turn.state) : turn.told ?? []);

function trueWords(state) {
  const { rows, cols, names } = state.task;
  return Array.from({ length: rows }, (_, i) => Array.from({ length: cols }, (_, j) => names[kindAt(state, i, j)]));
}

// Cells that are told wrong, by position, where the description has as many rows and cells as the board.
function wrongCells(turn) {
  const { state } = turn;
  const told = toldBoard(turn);
  if (turn.exact || told.length !== state.task.rows) return [];
  return told.flatMap((line, row) => line.length !== state.task.cols ? [] : line
    .map((word, column) => ({ row, column, word, truth: state.task.names[kindAt(state, row, column)] }))
    .filter(({ word, truth }) => word !== truth.toLowerCase()));
}

// What keeps a description from being compared cell by cell.
function shapeProblems(turn) {
  const { rows, cols } = turn.state.task;
  const told = toldBoard(turn);
  if (!told.length) return ["No board was described."];
  if (told.length !== rows) return [`Lines described: ${told.length}; rows of the board: ${rows}.`];
  return told.flatMap((line, i) => line.length === cols ? [] : [`Row ${i}: cells described: ${line.length}; columns of the board: ${cols}.`]);
}

function drawTold(canvas, sheet, turn) {
  const { task } = turn.state;
  drawDescription(canvas, sheet, task, toldBoard(turn), wrongCells(turn).map(({ row, column }) => [row, column]));
}
