// The page: what its address says is shown, and keys and buttons reach the game.
//
//   #s=ID      a session, gone on with      #r=LINK    a replay
//   #scores    the scoreboard               nothing    a new game

let game = null; // the game that is played, or was before another part was looked at
let setup = null;
let replay = null;
let shown = ""; // the address that is shown

const nameGiven = () => $("name").value.trim();

function showOnly(part) {
  for (const id of ["play", "replay", "scores"]) $(id).hidden = id !== part;
  for (const link of $("parts").querySelectorAll("a")) {
    const here = link.dataset.part === part;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (part !== "replay") replay?.stop();
  if (part !== "play" && game) game.pause();
}

function address(hash) {
  shown = hash;
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
}

// Takes a session onto the page.
function enter(session, focus) {
  game?.leave();
  $("outcome").textContent = "";
  game = new Game(session, setup.catalog, setup.model);
  const seats = session.lanes.map(({ seat }) => seat);
  setup.begun(seats, titleOf(session.task.game, session.task.reasoning));
  $("seed-shown").textContent = session.seed;
  $("rules").textContent = session.task.prompt;
  $("share-out").hidden = true;
  address(`#s=${session.id}`);
  showOnly("play");
  if (!seats.includes("person") && session.lanes.every(({ moves }) => !moves)) game.goOn();
  game.going ||= seats.includes("person") && seats.length > 1;
  game.settle();
  if (focus) (seats.includes("person") ? $("lanes") : $("go")).focus({ preventScroll: true });
}

let begins = 0; // only the newest of what was asked for is shown

// What another game like the one that is shown is made of.
function alike() {
  const { label, task: { game: name, reasoning, perception }, seats } = game;
  return { game: name, label, reasoning, perception, seats };
}

async function begin(given, focus = true) {
  const number = ++begins;
  note("");
  try {
    const session = await ask("/api/sessions", { body: { ...given, name: given.seats.includes("person") ? nameGiven() : "" } });
    if (number === begins) enter(session, focus);
  } catch (error) {
    note(error.message);
    if (error.code !== "name") return;
    $("name").setAttribute("aria-invalid", "true");
    $("name").focus();
  }
}

async function goTo(hash) {
  if (hash === shown) return;
  shown = hash;
  note("");
  try {
    if (hash === "#scores") {
      showOnly("scores");
      await showScores(nameGiven() || "anonymous");
    } else if (hash.startsWith("#r=")) {
      showOnly("replay");
      replay = new Replay(hash.slice(3));
      await replay.open();
    } else if (hash.startsWith("#s=")) {
      enter(await ask(`/api/sessions/${encodeURIComponent(hash.slice(3))}`));
    } else if (game) {
      address(`#s=${game.id}`);
      showOnly("play");
    } else await setup.start(undefined, undefined, false);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.code === "no_session") await setup.start(undefined, undefined, false);
    note(error.code === "no_session" ? "That game is not here any more. This is a new one." : error.message);
  }
}

async function share() {
  const lane = game.lanes[0];
  try {
    const { link } = await ask(`${game.path}/link`);
    $("share-link").value = `${location.origin}/#r=${link}`;
    $("share-open").href = `#r=${link}`;
    $("share-out").hidden = false;
    $("share-link").focus();
    $("share-link").select();
  } catch (error) {
    lane.tell(error.message);
  }
}

async function copy() {
  $("share-link").select();
  try {
    await navigator.clipboard.writeText($("share-link").value);
    $("copied").textContent = "Copied.";
  } catch {
    $("copied").textContent = "Press Ctrl+C to copy.";
  }
}

// Arrow keys play the game of moves in words, wherever the focus is but in a field.
function key(event) {
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || $("play").hidden || !game) return;
  if (event.target.closest("input, select, textarea, summary, pre, .scroll, [role=grid]")) return;
  const word = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (word && game.person?.board.word(word)) event.preventDefault();
}

function named() {
  $("name").removeAttribute("aria-invalid");
  note("");
  kept.set("name", nameGiven());
  // A game counts for who began it; one that nobody has moved in is begun again.
  if (game?.person && game.lanes.every(({ view }) => !view.moves)) begin({ ...alike(), seed: game.seed }, false);
}

function sped() {
  $("speed").setAttribute("aria-valuetext", ["very slow", "slow", "calm", "quick", "fast", "as fast as it goes"][$("speed").value]);
  kept.set("speed", $("speed").value);
  game?.hurry?.();
}

function wire() {
  $("name").value = kept.get("name").slice(0, 24);
  $("name").addEventListener("change", named);
  if (/^[0-5]$/.test(kept.get("speed"))) $("speed").value = kept.get("speed");
  $("speed").addEventListener("input", sped);
  $("go").addEventListener("click", () => (game.going ? game.pause() : game.goOn()));
  $("step").addEventListener("click", () => game.step());
  $("waits").addEventListener("change", () => {
    game.waits = $("waits").checked;
    game.settle();
  });
  $("new").addEventListener("click", () => begin(alike()));
  $("share").addEventListener("click", share);
  $("copy").addEventListener("click", copy);
  document.addEventListener("keydown", key);
  window.addEventListener("hashchange", () => goTo(location.hash));
  sped();
}

async function start() {
  wire();
  try {
    setup = new Setup(await ask("/api/catalog"), begin);
  } catch (error) {
    return note(error.message);
  }
  shown = null;
  return goTo(location.hash);
}

start();
