// Choosing: a game, who plays it, and for those who want more every option of it.

const MODES = {
  play: { name: "Play", about: () => "You move.", seats: () => ["person"] },
  watch: { name: "Watch", about: (model) => `${model} moves. See what it sees.`, seats: (model) => [model] },
  race: { name: "Race", about: (model) => `You and ${model}, the same board.`, seats: (model) => ["person", model] },
};

class Setup {
  // `begin` is called with what a session is made of.
  constructor(catalog, begin) {
    Object.assign(this, { catalog, begin, mode: "play" });
    this.model = catalog.models[0].name;
    this.games = this.trained();
    this.choice = this.games[0];
    this.showGames();
    this.showModes();
    this.showModels();
    new Options(catalog, (given) => this.start(given.seats, given));
  }

  // What the model that is chosen was trained on, else a small one of each game.
  trained() {
    const { games } = this.catalog.models.find(({ name }) => name === this.model);
    if (games.length) return games;
    return this.catalog.games.map(({ name }) => ({ game: name, reasoning: 0 }));
  }

  title({ game, reasoning, label }) {
    const spec = this.catalog.games.find(({ name }) => name === game);
    return spec ? titleOf(game, typeof reasoning === "number" ? spec.levels[reasoning] : reasoning) : label;
  }

  showGames() {
    const summary = (game) => this.catalog.games.find(({ name }) => name === game)?.summary ?? "";
    $("games").replaceChildren(...this.games.map((game) => el("label", { class: "chip" },
      el("input", { type: "radio", name: "game", checked: game === this.choice, onchange: () => this.choose(game) }),
      el("span", {}, el("b", {}, this.title(game)), el("small", {}, summary(game.game))))));
  }

  choose(game) {
    this.choice = game;
    this.start(undefined, undefined, false);
  }

  showModes() {
    $("modes").replaceChildren(...Object.entries(MODES).map(([mode, { name, about }]) =>
      el("button", { type: "button", class: "mode", "data-mode": mode, "aria-pressed": "false", onclick: () => this.start(MODES[mode].seats(this.model)) },
        el("b", {}, name), el("small", {}, about(this.model)))));
  }

  showModels() {
    const { models } = this.catalog;
    $("model-label").hidden = models.length < 2;
    $("model").replaceChildren(...models.map(({ name }) => el("option", {}, name)));
    $("model").addEventListener("change", () => {
      this.model = $("model").value;
      this.games = this.trained();
      this.choice = this.games[0];
      this.showGames();
      this.showModes();
      this.start(MODES[this.mode].seats(this.model));
    });
  }

  // Begins a game: of the choice, or of what is given.
  start(seats = MODES[this.mode].seats(this.model), given = this.choice, focus = true) {
    return this.begin({ ...given, seats }, focus);
  }

  // Shows who plays the game that has begun, and what it is.
  begun(seats, game) {
    const [first, second] = seats;
    this.mode = seats.length > 1 ? "race" : first === "person" ? "play" : "watch";
    const plain = !second || seats.includes("person");
    for (const button of $("modes").children) button.setAttribute("aria-pressed", String(plain && button.dataset.mode === this.mode));
    const same = this.games.find((one) => this.title(one) === game);
    if (same) this.choice = same;
    [...$("games").querySelectorAll("input")].forEach((input, i) => (input.checked = this.games[i] === same));
  }
}

// The form with everything: game, level, look, players, seed.
class Options {
  constructor(catalog, begin) {
    Object.assign(this, { catalog });
    $("all-games").replaceChildren(...catalog.games.map(({ name, summary }) => el("option", { value: name }, `${titleOf(name)}: ${summary}`)));
    $("all-games").addEventListener("change", () => this.showGame());
    $("level").addEventListener("change", () => this.showLevel());
    const seats = [["person", "You"], ...catalog.models.map(({ name }) => [name, name]), ...catalog.classic.map((name) => [name, `${name}: ${CLASSIC[name] ?? "a classic player"}`])];
    const options = () => seats.map(([value, text]) => el("option", { value }, text));
    $("seat-0").replaceChildren(...options());
    $("seat-1").replaceChildren(el("option", { value: "" }, "nobody"), ...options());
    $("options").addEventListener("submit", (event) => {
      event.preventDefault();
      begin(this.given());
    });
    this.showGame();
  }

  get spec() {
    return this.catalog.games.find(({ name }) => name === $("all-games").value);
  }

  showGame() {
    const { levels, presets, name } = this.spec;
    $("level").replaceChildren(...levels.map((level, i) => el("option", { value: i }, Object.keys(level).length ? `${i + 1}: ${titleOf(name, level).split(" · ")[1] ?? i}${level.kinds ? `, ${level.kinds} kinds` : ""}` : `${i + 1}`)),
      ...presets.map((preset) => el("option", { value: preset }, `preset ${preset}`)));
    this.fill("reasoning", this.spec.reasoning);
    this.fill("perception", this.spec.perception);
    this.showLevel();
  }

  // The numbers of a level, where it has some; a preset sets what it sets.
  showLevel() {
    const level = this.spec.levels[Number($("level").value)] ?? {};
    for (const input of $("options").querySelectorAll("[data-axis]")) {
      input.value = input.dataset.axis === "reasoning" ? level[input.name] ?? input.dataset.value : input.dataset.value;
    }
  }

  fill(axis, fields) {
    const hidden = ["cifar10", "folder"]; // files of the server's own
    $(axis).replaceChildren(...fields.map(({ name, value, help, low, high, choices, bounds }) => {
      const shared = { name, "data-axis": axis, "data-value": value, "aria-describedby": `${axis}-${name}` };
      const input = choices
        ? el("select", shared, choices.filter((choice) => !hidden.includes(choice)).map((choice) => el("option", {}, choice)))
        : el("input", { ...shared, type: "number", min: low, max: high, step: bounds.includes(".") ? "any" : 1, required: true });
      return el("div", { class: "option" }, el("label", {}, capital(name.replaceAll("_", " ")), input), el("small", { id: `${axis}-${name}` }, help));
    }));
  }

  // Only what was changed is sent: the rest is the level's, or the preset's.
  given() {
    const level = $("level").value;
    const isPreset = !/^\d+$/.test(level);
    const base = isPreset ? {} : this.spec.levels[Number(level)];
    const axes = { reasoning: { ...base }, perception: {} };
    for (const input of $("options").querySelectorAll("[data-axis]")) {
      const value = input.type === "number" ? Number(input.value) : input.value;
      const was = input.dataset.axis === "reasoning" && input.name in base ? base[input.name] : input.dataset.value;
      if (String(value) !== String(was)) axes[input.dataset.axis][input.name] = value;
    }
    const seed = $("seed").value;
    return {
      game: this.spec.name, preset: isPreset ? level : "", seats: [$("seat-0").value, $("seat-1").value].filter(Boolean), ...(seed === "" ? {} : { seed: Number(seed) }),
      ...Object.fromEntries(Object.entries(axes).filter(([, its]) => Object.keys(its).length)),
    };
  }
}
