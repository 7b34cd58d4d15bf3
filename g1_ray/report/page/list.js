// The list of rollouts: filters, the lines that are in sight, and the keyboard.

const LINE = 74; // pixels of a line, as in the style
const listing = { found: [], at: 0, texts: [] };

const has = (bits, number) => Math.floor(bits / 2 ** number) % 2 === 1;
const namesOf = (bits, names) => names.filter((_, i) => has(bits, i));

// What the search looks through.
function textOf(i) {
  listing.texts[i] ??= [VIEWER.games[ROLLOUTS.game[i]], playerOf(i), titleOf(i), ...namesOf(ROLLOUTS.outcomes[i], VIEWER.outcomes),
    ...namesOf(ROLLOUTS.causes[i], VIEWER.causes), ROLLOUTS.misread[i] ? "misread" : ""].join(" ").toLowerCase();
  return listing.texts[i];
}

// What a search asks for: words, numbers as wholes, and a number together with what it counts, as in "group 12".
function searched(query) {
  const terms = query.toLowerCase().match(/(?:group|rollout|seed|board|policy) \d+|[^\s,]+/g) ?? [];
  const whole = (term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/^(?=\d)/, "(?<!\\d)").replace(/(?<=\d)$/, "(?!\\d)");
  return terms.map((term) => new RegExp(whole(term)));
}

function filter() {
  const value = (id) => ($(id).value === "" ? null : Number($(id).value));
  const [game, player, outcome, cause, from, to] = ["game", "player", "outcome", "cause", "from", "to"].map(value);
  const terms = searched($("search").value);
  const misread = $("misread").checked;
  const before = listing.found[listing.at];
  listing.found = [];
  for (let i = 0; i < TOTAL; i++) {
    if (game !== null && ROLLOUTS.game[i] !== game) continue;
    if (player !== null && ROLLOUTS.player[i] !== player) continue;
    if (outcome !== null && !has(ROLLOUTS.outcomes[i], outcome)) continue;
    if (cause !== null && !has(ROLLOUTS.causes[i], cause)) continue;
    if (misread && !ROLLOUTS.misread[i]) continue;
    if ((from !== null || to !== null) && ROLLOUTS.from[i] === null) continue;
    if (from !== null && ROLLOUTS.to[i] < from) continue;
    if (to !== null && ROLLOUTS.from[i] > to) continue;
    if (!terms.every((term) => term.test(textOf(i)))) continue;
    listing.found.push(i);
  }
  $("lines").style.height = `${listing.found.length * LINE}px`;
  $("count").textContent = `${num(listing.found.length)} of ${num(TOTAL)} rollouts`;
  go(Math.max(0, listing.found.indexOf(before)));
}

// Whether a turn is what the filters ask for; a rollout is opened at its first such turn.
function isWanted(turn) {
  const [outcome, cause] = [$("outcome").value, $("cause").value];
  return (outcome === "" || turn.outcome === Number(outcome)) && (cause === "" || turn.cause === VIEWER.causes[cause]) &&
    (!$("misread").checked || turn.exact === false);
}

function go(at) {
  listing.at = Math.min(Math.max(0, at), Math.max(0, listing.found.length - 1));
  const list = $("list");
  const top = listing.at * LINE;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + LINE > list.scrollTop + list.clientHeight) list.scrollTop = top + LINE - list.clientHeight;
  drawLines();
  showRollout(listing.found[listing.at] ?? -1, isWanted);
}

function drawLines() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / LINE) - 4);
  const last = Math.min(listing.found.length, Math.ceil((list.scrollTop + list.clientHeight) / LINE) + 4);
  $("lines").replaceChildren(...listing.found.slice(first, last).map((i, k) => line(i, first + k)));
  if (listing.found.length) list.setAttribute("aria-activedescendant", `line-${listing.at}`);
  else list.removeAttribute("aria-activedescendant");
}

function line(i, at) {
  const earned = (isTraining(i) ? `reward ${num(ROLLOUTS.total[i])}` : `score ${num(ROLLOUTS.score[i])}`) +
    (ROLLOUTS.turns[i] > 1 ? `, ${num(ROLLOUTS.turns[i])} moves` : "");
  const what = [...namesOf(ROLLOUTS.outcomes[i], VIEWER.outcomes), ROLLOUTS.misread[i] ? "misread" : ""].filter(Boolean).join(", ");
  return el("div", {
    role: "option", id: `line-${at}`, class: "line", style: `top:${at * LINE}px`, "aria-selected": String(at === listing.at),
    "aria-posinset": at + 1, "aria-setsize": listing.found.length, onclick: () => go(at),
  }, el("span", {}, el("b", {}, `${VIEWER.games[ROLLOUTS.game[i]]}, ${playerOf(i)}`), el("span", {}, earned)),
  el("span", {}, titleOf(i)), el("span", {}, what));
}

const KEYS = {
  ArrowUp: () => go(listing.at - 1),
  ArrowDown: () => go(listing.at + 1),
  PageUp: () => go(listing.at - 10),
  PageDown: () => go(listing.at + 10),
  ArrowLeft: () => showStep(view.step - 1),
  ArrowRight: () => showStep(view.step + 1),
  Home: () => showStep(0),
  End: () => showStep(view.turns.length - 1),
};

function onKey(event) {
  if (event.target.matches("input:not([type=checkbox]), select")) {
    if (event.target.id === "search" && (event.key === "Enter" || event.key === "Escape")) $("list").focus();
    else return;
  } else if (event.ctrlKey || event.altKey || event.metaKey || !KEYS[event.key]) return;
  else KEYS[event.key]();
  event.preventDefault();
}

// A choice, offered where there is more than one thing to choose from.
function choices(id, names) {
  $(id).append(el("option", { value: "" }, "any"), ...names.map((name, i) => el("option", { value: i }, name)));
  $(id).closest("label").hidden = names.length < (id === "cause" ? 1 : 2);
}

if (TOTAL) {
  showPart("rollouts");
  choices("game", VIEWER.games);
  choices("player", VIEWER.players);
  choices("outcome", VIEWER.outcomes);
  choices("cause", VIEWER.causes);
  $("versions").hidden = !VIEWER.players.includes(VIEWER.training);
  $("left-out").append(...(VIEWER.left_out.length
    ? [`On this page are ${VIEWER.left_out.join("; ")}. The option `, el("code", {}, "--rollouts"), " takes another number."]
    : ["All rollouts of the folder are on this page."]));
  buildArticle();
  $("filters").addEventListener("input", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(filter));
  $("list").addEventListener("scroll", drawLines, { passive: true });
  new ResizeObserver(drawLines).observe($("list"));
  $("rollouts").addEventListener("keydown", onKey);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select, textarea")) return;
    event.preventDefault();
    $("search").focus();
    $("search").select();
  });
  filter();
}
