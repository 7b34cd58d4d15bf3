// Tiles and boards on a canvas: what the report and the arena share.

const kindOf = (task, word) => task.names.findIndex((name) => name.toLowerCase() === word);

// As much of what was told for a cell as a cell has room for: a model may tell a novel.
const short = (word) => (word.length > 24 ? `${word.slice(0, 23)}…` : word);

function drawTile(context, sheet, task, tile, x, y, size) {
  const [column, row] = [tile % task.columns, Math.floor(tile / task.columns)];
  context.imageSmoothingEnabled = false;
  context.drawImage(sheet, column * task.px, row * task.px, task.px, task.px, x, y, size, size);
}

// The board as it was described: the tile of a kind that is known, else the word; what is wrong has a frame and a cross.
// `task`: px, rows, cols, names of the kinds, kinds of the sheet's tiles, its columns. `told`: words [rows][cols], and
// where it still comes, at least `least` rows and columns are drawn. `wrong`: [row, column] each.
function drawDescription(canvas, sheet, task, told, wrong, least = [1, 1]) {
  const cell = task.px * Math.max(1, Math.round(480 / (task.px * Math.max(task.rows, task.cols))));
  canvas.width = cell * Math.max(least[1], ...told.map((line) => line.length));
  canvas.height = cell * Math.max(least[0], told.length);
  const context = canvas.getContext("2d");
  told.forEach((line, row) => line.forEach((word, column) => {
    const tile = task.kinds.indexOf(kindOf(task, word.toLowerCase()));
    if (tile >= 0) drawTile(context, sheet, task, tile, column * cell, row * cell, cell);
    else drawWord(context, short(word), column * cell, row * cell, cell);
  }));
  wrong.forEach(([row, column]) => drawCross(context, column * cell, row * cell, cell));
}

function drawWord(context, word, x, y, cell) {
  context.fillStyle = "#f4f1ea";
  context.fillRect(x + 1, y + 1, cell - 2, cell - 2);
  context.fillStyle = "#1c1b19";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${Math.round(cell / 5)}px system-ui, sans-serif`;
  context.fillText(word || "nothing", x + cell / 2, y + cell / 2, cell * 0.9);
}

function drawCross(context, x, y, cell) {
  const size = cell / 4;
  const frame = [["#ffffff", cell / 14], ["#c0143c", cell / 24]];
  for (const [color, width] of frame) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(x + cell / 24, y + cell / 24, cell - cell / 12, cell - cell / 12);
  }
  context.fillStyle = "#c0143c";
  context.fillRect(x + cell - size, y, size, size);
  context.strokeStyle = "#ffffff";
  context.lineWidth = cell / 30;
  context.beginPath();
  context.moveTo(x + cell - 0.75 * size, y + 0.25 * size);
  context.lineTo(x + cell - 0.25 * size, y + 0.75 * size);
  context.moveTo(x + cell - 0.25 * size, y + 0.25 * size);
  context.lineTo(x + cell - 0.75 * size, y + 0.75 * size);
  context.stroke();
}
