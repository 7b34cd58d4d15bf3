// The scoreboard: who came to what, with 95 % intervals of the mean.

async function showScores(mine) {
  const boards = await ask("/api/scoreboard");
  $("score-tables").replaceChildren(...boards.map((board) => scoreTable(board, mine)));
  $("no-scores").hidden = boards.length > 0;
}

function scoreTable({ game, name, reasoning, rows }, mine) {
  const title = titleOf(name, reasoning);
  const top = Math.max(1e-9, ...rows.map(({ score: [, , high] }) => high));
  const heads = ["Player", "Points a game", "Best", "Games", "Won", "Board read right", "Scored when read right"];
  const share = (value) => el("td", { class: "number" }, value === null ? "–" : percent(value));
  const row = ({ player, kind, games, score, best, won, p_acc, r_acc }) => el("tr", {},
    el("th", { scope: "row" }, player, " ", el("small", {}, kind === "person" && player === mine ? "you" : kind), files(game, kind, player, mine)),
    el("td", {}, num(score[0]), el("small", {}, games > 1 ? ` ${num(score[1])} to ${num(score[2])}` : " one game"), interval(score, top)),
    el("td", { class: "number" }, num(best)), el("td", { class: "number" }, num(games)), el("td", { class: "number" }, num(won)), share(p_acc), share(r_acc));
  return el("div", { class: "titled" }, el("h3", {}, title, " ", el("small", {}, game)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", { class: "scores", "aria-label": title },
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: i > 1 ? "number" : null }, head)))), el("tbody", {}, rows.map(row)))));
}

// A person's own games as a file.
function files(game, kind, player, mine) {
  if (kind !== "person" || player !== mine) return "";
  const query = new URLSearchParams({ game, name: player });
  return el("a", { href: `/api/recordings?${query}`, download: `${game}-${player}.parquet`, "aria-label": `Your games of ${game} as a file` }, "file");
}

function interval([mean, low, high], top) {
  const at = (value) => `${Math.max(0, Math.min(100, 100 * value / top))}%`;
  return el("span", { class: "interval", "aria-hidden": "true" },
    el("i", { style: `left:${at(low)};width:calc(${at(high)} - ${at(low)})` }), el("b", { style: `left:${at(mean)}` }));
}
