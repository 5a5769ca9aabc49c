// Asks for what is new twice a second, and draws it.
(() => {
  "use strict";
  const WINDOW = 60, EVERY = 500;
  const LAYERS = [
    ["private", "#8b93a1", "private memory of processes"], ["live", "#4e86c6", "results that are needed"],
    ["work", "#2fb3b3", "what tasks work with"], ["warm", "#ecc766", "kept warm for the next ones"],
  ];
  const DISK = "#b94fd1", LIMIT = "#e0605a";
  const by = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let bars = [], glances = [], after = -1, since = 0, state = null, drawn = [];

  function bytes(n) {
    for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
      if (n >= size * 0.9995) return (n / size).toFixed(n < 10 * size ? 1 : 0) + " " + unit;
    return n.toFixed(0) + " B";
  }
  function seconds(s) {
    if (s >= 59.5) {
      const whole = Math.round(s), two = (n) => String(n).padStart(2, "0");
      const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
      return (h ? h + ":" + two(m) : m) + ":" + two(whole % 60);
    }
    for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]])
      if (s >= size * 0.9995) return (s / size).toFixed(s < 10 * size ? 1 : 0) + " " + unit;
    return "0 s";
  }
  const count = (n) => n.toLocaleString("en");
  function make(tag, text, parent) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  }

  function canvas(id, height) {
    const node = by(id), scale = devicePixelRatio || 1, width = node.clientWidth;
    node.style.height = height + "px";
    node.width = width * scale;
    node.height = height * scale;
    const paint = node.getContext("2d");
    paint.scale(scale, scale);
    paint.font = "11px system-ui, sans-serif";
    return [paint, width];
  }
  const LEFT = 76, RIGHT = 12;
  function range() {
    const first = Math.min(...bars.map((bar) => bar.start), ...glances.map((glance) => glance.time), state.now);
    return [state.now - Math.min(WINDOW, 10 * Math.ceil((state.now - first) / 10 + 0.01)), state.now];
  }
  function timeAxis(paint, width, height, begin, end) {
    const x = (time) => LEFT + (time - begin) / (end - begin) * (width - LEFT - RIGHT);
    paint.fillStyle = colour("--faint");
    paint.strokeStyle = colour("--line");
    paint.textAlign = "center";
    const step = end - begin > 30 ? 10 : end - begin > 10 ? 5 : 2;
    for (let ago = 0; ago <= end - begin + 1e-3; ago += step) {
      const at = Math.round(x(end - ago)) + 0.5;
      paint.beginPath(); paint.moveTo(at, 0); paint.lineTo(at, height - 18); paint.stroke();
      paint.fillText(ago ? "−" + ago + " s" : "now", Math.min(at, width - 16), height - 4);
    }
    return x;
  }

  function lanes() {
    const caller = bars.some((bar) => bar.worker < 0);
    const rows = state.workers + (caller ? 1 : 0), tall = Math.max(8, Math.min(26, 560 / Math.max(1, rows)));
    const height = rows * tall + 22, [begin, end] = range();
    const [paint, width] = canvas("lanes", height);
    const x = timeAxis(paint, width, height, begin, end);
    const row = (worker) => (worker < 0 ? state.workers : worker) * tall;
    drawn = [];
    for (const bar of bars) {
      if (bar.end < begin) continue;
      const from = Math.max(LEFT, x(bar.start)), long = Math.max(0.6, x(bar.end) - from), room = tall * 0.82;
      const top = row(bar.worker) + tall * 0.09 + room * (1 - bar.high), high = room * (bar.high - bar.low);
      paint.fillStyle = bar.bad ? LIMIT : bar.colour;
      paint.fillRect(from, top, long, high);
      drawn.push([from, top, long, high, bar]);
    }
    paint.fillStyle = colour("--faint");
    paint.textAlign = "right";
    paint.textBaseline = "middle";
    const step = tall < 13 ? 4 : 1;
    for (let worker = 0; worker < state.workers; worker += step)
      paint.fillText("worker " + worker, LEFT - 10, row(worker) + tall / 2);
    if (caller) paint.fillText("caller", LEFT - 10, row(-1) + tall / 2);
  }

  function memory() {
    const height = 220, [begin, end] = range();
    const [paint, width] = canvas("memory", height);
    const totals = glances.map((g) => LAYERS.reduce((sum, [name]) => sum + g[name], 0));
    const most = Math.max(1, ...totals, ...glances.map((g) => g.disk));
    const shows = state.limit > 0 && state.limit <= 3 * most;
    const top = 1.1 * Math.max(most, shows ? state.limit : 0);
    const y = (n) => (height - 22) * (1 - n / top) + 4;
    const x = timeAxis(paint, width, height, begin, end);
    paint.save();
    paint.beginPath(); paint.rect(LEFT, 0, width - LEFT - RIGHT, height); paint.clip();
    const below = glances.map(() => 0);
    for (const [name, tone] of LAYERS) {
      paint.fillStyle = tone;
      paint.beginPath();
      glances.forEach((g, i) => paint.lineTo(x(g.time), y(below[i] + g[name])));
      for (let i = glances.length - 1; i >= 0; i--) paint.lineTo(x(glances[i].time), y(below[i]));
      paint.fill();
      glances.forEach((g, i) => { below[i] += g[name]; });
    }
    paint.strokeStyle = DISK; paint.lineWidth = 2;
    paint.beginPath();
    glances.forEach((g) => paint.lineTo(x(g.time), y(g.disk)));
    paint.stroke();
    if (shows) {
      paint.strokeStyle = LIMIT; paint.setLineDash([6, 4]);
      paint.beginPath(); paint.moveTo(LEFT, y(state.limit)); paint.lineTo(width, y(state.limit)); paint.stroke();
    }
    paint.restore();
    paint.fillStyle = colour("--faint");
    paint.textAlign = "right";
    paint.textBaseline = "middle";
    const unit = 10 ** Math.floor(Math.log10(top / 4)), step = [1, 2, 5, 10].find((n) => top / (n * unit) <= 5) * unit;
    for (let n = 0; n <= top; n += step) paint.fillText(bytes(n), LEFT - 10, y(n));
  }

  function tiles() {
    const part = state.limit ? state.memory / state.limit : 0;
    const said = [
      [count(state.done), "of " + count(state.total) + " tasks"],
      [state.rate >= 10 ? count(Math.round(state.rate)) : state.rate.toFixed(1), "tasks a second"],
      [state.left === null ? "–" : seconds(state.left), "left, " + seconds(state.elapsed) + " gone"],
      [state.busy + "/" + state.workers, "workers busy"],
      [bytes(state.memory), "of " + bytes(state.limit), part],
      [bytes(state.spilled), "spilled, " + bytes(state.on_disk) + " on disk"],
      [String(state.deaths), "workers died", null, state.deaths > 0],
    ];
    const box = by("tiles");
    box.replaceChildren();
    for (const [value, text, gauge, bad] of said) {
      const tile = make("div", null, box);
      tile.className = bad ? "tile bad" : "tile";
      make("b", value, tile);
      make("span", text, tile);
      if (typeof gauge === "number") {
        const bar = make("div", null, tile);
        bar.className = "gauge";
        make("i", null, bar).style.width = Math.min(100, 100 * gauge) + "%";
      }
    }
    by("overall").firstElementChild.style.width = (state.total ? 100 * state.done / state.total : 0) + "%";
    by("status").textContent =
      state.reading ? "reading a graph" : state.active ? "running" : state.done ? "idle" : "waiting for the first graph";
    by("most").textContent = "at most " + bytes(state.peak) + " of " + bytes(state.limit);
    document.title = state.active && state.total ? Math.floor(100 * state.done / state.total) + "% graphmill" : "graphmill";
  }

  function kinds() {
    const body = by("kinds");
    body.replaceChildren();
    for (const kind of state.kinds.slice(0, 60)) {
      const row = make("tr", null, body), name = make("td", null, row), bar = make("td", null, row);
      const chip = make("i", null, name);
      chip.className = "chip";
      chip.style.background = kind.colour;
      name.append(kind.kind);
      const gauge = make("div", null, bar);
      gauge.className = "gauge";
      const fill = make("i", null, gauge);
      fill.style.width = 100 * kind.done / Math.max(1, kind.total) + "%";
      fill.style.background = kind.colour;
      make("td", count(kind.done) + " of " + count(kind.total), row);
      make("td", kind.running ? count(kind.running) : "", row);
      make("td", count(Math.max(0, kind.total - kind.done - kind.running)), row);
    }
  }

  function legend() {
    for (const [tone, text] of [...LAYERS.map(([, tone, text]) => [tone, text]), [DISK, "on disk"], [LIMIT, "the limit"]]) {
      const item = make("span", null, by("legend"));
      const chip = make("i", null, item);
      chip.className = "chip";
      chip.style.background = tone;
      item.append(text);
    }
  }

  function draw() {
    if (state === null) return;
    tiles(); lanes(); memory(); kinds();
  }

  async function ask() {
    try {
      const answer = await fetch("state?after=" + after + "&since=" + since, {cache: "no-store"});
      if (!answer.ok) throw new Error(answer.status);
      state = await answer.json();
    } catch {
      by("status").textContent = "the program has ended, or closed this page";
      by("status").className = "lost";
      return;
    }
    after = state.next;
    bars.push(...state.bars);
    glances.push(...state.glances);
    if (glances.length) since = glances[glances.length - 1].time;
    const begin = state.now - WINDOW;
    bars = bars.filter((bar) => bar.end >= begin);
    glances = glances.filter((glance, i) => glance.time >= begin || glances[i + 1]?.time >= begin);
    draw();
    document.documentElement.dataset.ready = "yes";
    setTimeout(ask, EVERY);
  }

  by("lanes").addEventListener("mousemove", (event) => {
    const box = by("lanes").getBoundingClientRect(), x = event.clientX - box.x, y = event.clientY - box.y;
    const found = drawn.findLast(([left, top, long, high]) => x >= left && x <= left + long && y >= top && y <= top + high);
    const tip = by("tip");
    tip.hidden = !found;
    if (!found) return;
    const bar = found[4];
    tip.textContent = bar.kind + "\n" + bar.label + "\ntook " + seconds(bar.seconds) + " · result " + bytes(bar.bytes);
    tip.style.left = Math.max(8, Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = event.clientY + 14 + "px";
  });
  by("lanes").addEventListener("mouseleave", () => { by("tip").hidden = true; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", draw);
  legend();
  ask();
})();
