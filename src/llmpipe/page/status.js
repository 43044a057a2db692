// Shows what /events and /history tell.
//
// Names come from a configuration and request ids from strangers: they only ever become the text of a node. Nothing is drawn anew that
// has not changed, so that a selection, a focus and a place in a table stay.

"use strict";

(() => {
  const SPAN = 900;  // seconds that a plot is of
  const SILENCE = 20000;  // milliseconds without an event after which the connection counts as lost
  const UNSEEN = 60000;  // milliseconds in a hidden tab after which it follows no more: there are few places
  const RETRY = 3000;  // milliseconds before it is tried again where the browser does not do it
  const SHOWN = 12;  // models of a pool that are shown
  const DASH = "\u2013";

  const byId = (id) => document.getElementById(id);

  // --- Numbers ---

  const three = new Intl.NumberFormat("en-US", {maximumSignificantDigits: 3});
  const whole = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});

  const count = (value) => whole.format(value);
  const amount = (value) => value >= 1000 ? whole.format(value) : three.format(value);
  const rate = (value) => `${amount(value)}/s`;

  const UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "\u00b5s"]];
  const unitOf = (seconds) => UNITS.find(([size]) => seconds >= size) ?? UNITS[2];

  function time(seconds) {
    if (seconds === null) { return DASH; }
    const [size, name] = unitOf(seconds);
    return `${amount(seconds / size)} ${name}`;
  }

  const SPANS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

  // The time since something, in the two greatest units that it has.
  function age(seconds) {
    const parts = [];
    let rest = Math.max(0, Math.floor(seconds));
    for (const [size, name] of SPANS) {
      if (rest >= size || (name === "s" && !parts.length)) { parts.push(`${Math.floor(rest / size)} ${name}`); }
      rest %= size;
    }
    return parts.slice(0, 2).join(" ");
  }

  // The same in one unit, for a narrow column.
  const silence = (seconds) => seconds === null ? DASH : age(seconds).split(" ").slice(0, 2).join(" ");

  const clock = (iso) => iso.slice(11, 23);  // it is UTC

  // --- Nodes ---

  function text(node, value) {
    if (node.shown !== value) {
      node.shown = value;
      node.textContent = value;
    }
  }

  function make(name, kind = "", value = "") {
    const node = document.createElement(name);
    if (kind) { node.className = kind; }
    if (value) { text(node, value); }
    return node;
  }

  const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

  function draw(name, attributes, value) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, each] of Object.entries(attributes)) { node.setAttribute(key, each); }
    if (value !== undefined) { node.textContent = value; }
    return node;
  }

  // Makes a dl of [name, value] pairs, of those that have a value.
  function facts(list, pairs) {
    const shown = JSON.stringify(pairs);
    if (list.shown === shown) { return; }
    list.shown = shown;
    list.replaceChildren(...pairs.filter(([, value]) => value).map(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      return pair;
    }));
  }

  // --- Plots ---

  const HEIGHT = 140;
  const RIGHT = 8;
  const TOP = 10;
  const BOTTOM = 22;

  // The least of 1, 2 and 5 times a power of ten with which three steps reach the most.
  function stepTo(most) {
    const size = 10 ** Math.floor(Math.log10(most / 3));
    return size * [1, 2, 5, 10].find((each) => 3 * each * size >= most * 0.9999);
  }

  // Times and counts of steps are written out alike, so that 0.5 stands beside 1.0.
  function axisLabel(value, step, kind) {
    if (value === 0) { return "0"; }
    if (kind === "time") {
      const [size, name] = unitOf(step * 3);
      return `${three.format(value / size)} ${name}`;
    }
    const short = value >= 1e6 ? `${three.format(value / 1e6)}M` : value >= 1e4 ? `${three.format(value / 1e3)}k` : three.format(value);
    return kind === "rate" ? `${short}/s` : short;
  }

  class Plot {
    constructor(place, card) {
      this.card = card;
      this.place = place;
      this.samples = [];
      this.svg = draw("svg", {role: "img"});
      this.place.append(this.svg);
      this.pointer = null;
      const point = (x) => {
        this.pointer = x;
        this.point();
      };
      this.svg.addEventListener("pointermove", ({offsetX}) => point(offsetX));
      this.svg.addEventListener("pointerleave", () => point(null));
      // Texts keep their size: the plot is drawn for its width.
      new ResizeObserver(() => {
        if (place.clientWidth !== this.width) { this.draw(); }
      }).observe(place);
      this.draw();
    }

    update(samples) {
      this.samples = samples;
      this.draw();
    }

    x(at) {
      return this.width - RIGHT - (this.end - at) / SPAN * (this.width - this.left - RIGHT);
    }

    y(value) {
      return HEIGHT - BOTTOM - value / this.top * (HEIGHT - TOP - BOTTOM);
    }

    draw() {
      const {series, kind} = this.card;
      this.width = Math.max(160, this.place.clientWidth);
      this.end = this.samples.at(-1)?.at ?? 0;
      const values = this.samples.flatMap((sample) => series.map(({key}) => sample[key] ?? 0));
      const least = kind === "time" ? 1e-5 : kind === "count" ? 3 : 0.3;
      const step = stepTo(Math.max(least, ...values));
      this.top = step * 3;
      const labels = [0, 1, 2, 3].map((line) => axisLabel(step * line, step, kind));
      this.left = 12 + 6.4 * Math.max(...labels.map((label) => label.length));
      const nodes = [];
      for (let line = 0; line <= 3; line += 1) {
        const y = this.y(step * line);
        nodes.push(draw("line", {class: line ? "grid" : "zero", x1: this.left, x2: this.width - RIGHT, y1: y, y2: y}));
        nodes.push(draw("text", {x: this.left - 8, y: y + 4, "text-anchor": "end"}, labels[line]));
      }
      for (const [minutes, anchor] of [[15, "start"], [10, "middle"], [5, "middle"], [0, "end"]]) {
        const at = this.x(this.end - minutes * 60);
        nodes.push(draw("text", {x: at, y: HEIGHT - 5, "text-anchor": anchor}, minutes ? `${DASH}${minutes} min` : "now"));
      }
      for (const [place, {key, line}] of series.entries()) {
        const runs = this.runs(key);
        if (place === 0) {
          const zero = this.y(0).toFixed(1);
          const area = runs.map((run) => `M${run[0][0]},${zero}L${run.map((point) => point.join()).join("L")}L${run.at(-1)[0]},${zero}Z`);
          nodes.push(draw("path", {class: "area", d: area.join("")}));
        }
        // A run of one point is a dot: its line ends where it begins, with round ends.
        const path = runs.map((run) => `M${run.map((point) => point.join()).join("L")}${run.length > 1 ? "" : "h0"}`);
        nodes.push(draw("path", {class: line, d: path.join("")}));
      }
      this.cursor = draw("g", {class: "cursor"});
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
      this.svg.setAttribute("aria-label", this.label());
      this.svg.replaceChildren(...nodes, this.cursor);
      this.point();
    }

    // Points without a gap between them: nothing was measured, or no sample was taken.
    runs(key) {
      const runs = [];
      let last = null;
      for (const sample of this.samples) {
        const value = sample[key];
        if (value !== null) {
          if (last === null || sample.at - last > 12) { runs.push([]); }
          runs.at(-1).push([this.x(sample.at).toFixed(1), this.y(value).toFixed(1)]);
        }
        last = value === null ? null : sample.at;
      }
      return runs;
    }

    label() {
      const {title, series, write} = this.card;
      const parts = series.map(({key, name}) => {
        const values = this.samples.map((sample) => sample[key]).filter((value) => value !== null);
        const what = series.length > 1 ? `${name}: ` : "";
        if (!values.length) { return `${what}nothing was measured`; }
        return `${what}${write(values.at(-1))} last, ${write(Math.min(...values))} at least, ${write(Math.max(...values))} at most`;
      });
      return `${title}, the last 15 minutes. ${parts.join("; ")}.`;
    }

    // Tells what is under the pointer.
    point() {
      this.cursor.replaceChildren();
      if (this.pointer === null || !this.samples.length) { return; }
      const {series, write} = this.card;
      const distance = (sample) => Math.abs(this.x(sample.at) - this.pointer);
      const sample = this.samples.reduce((best, each) => distance(each) < distance(best) ? each : best);
      const at = this.x(sample.at);
      const values = series.map(({key, name}) => `${series.length > 1 ? `${name} ` : ""}${sample[key] === null ? DASH : write(sample[key])}`);
      const words = draw("text", {y: TOP + 12}, `${new Date(sample.at * 1000).toISOString().slice(11, 19)} UTC  ${values.join("  ")}`);
      this.cursor.append(draw("line", {x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM}), words);
      const width = words.getComputedTextLength() + 12;
      const left = Math.max(this.left, Math.min(at - width / 2, this.width - RIGHT - width));
      words.setAttribute("x", left + 6);
      words.before(draw("rect", {x: left, y: TOP - 3, width, height: 20, rx: 4}));
    }
  }

  // --- Cards ---

  const waiting = (status) => status.pools.reduce((sum, pool) => sum + (pool.queue.waiting ?? 0), 0);

  const CARDS = [
    {
      title: "Streams", about: "open now", kind: "count", write: count,
      series: [{key: "streams", name: "streams", line: "one", now: (status) => count(status.streams)}],
    },
    {
      title: "Exchanges", about: "ended, a second", kind: "rate", write: rate,
      series: [
        {key: "exchanges", name: "all", line: "one", now: (status) => rate(status.rates.exchanges)},
        {key: "errors", name: "failed", line: "three", now: (status) => rate(status.rates.errors), some: (status) => status.rates.errors > 0},
      ],
    },
    {
      title: "Tokens", about: "of answers, a second", kind: "rate", write: rate,
      series: [{key: "tokens", name: "tokens", line: "one", now: (status) => rate(status.rates.tokens)}],
      more: [{name: "pieces forwarded", now: (status) => rate(status.rates.pieces)}],
    },
    {
      title: "Time to first token", about: "TTFT", kind: "time", write: time,
      series: [
        {key: "ttft_p50", name: "p50", line: "one", now: (status) => time(status.ttft.p50)},
        {key: "ttft_p99", name: "p99", line: "two", now: (status) => time(status.ttft.p99)},
      ],
    },
    {
      title: "Between tokens", about: "ITL", kind: "time", write: time,
      series: [
        {key: "itl_p50", name: "p50", line: "one", now: (status) => time(status.itl.p50)},
        {key: "itl_p99", name: "p99", line: "two", now: (status) => time(status.itl.p99)},
      ],
    },
    {
      title: "Waiting requests", about: "in queues now", kind: "count", write: count,
      series: [{key: "queued", name: "requests", line: "one", now: (status) => count(waiting(status))}],
    },
  ];

  class Card {
    constructor(card) {
      const node = fromTemplate("card");
      text(node.querySelector("h3"), card.title);
      text(node.querySelector("span"), card.about);
      this.values = [...card.series, ...card.more ?? []].map((value) => {
        const pair = make("div", value.line ?? "none");
        const shown = make("dd", "", DASH);
        pair.append(make("dt", "", value.name), shown);
        node.querySelector(".values").append(pair);
        return {...value, pair, shown};
      });
      byId("cards").append(node);
      this.plot = new Plot(node.querySelector(".plot"), card);
    }

    update(status) {
      for (const {pair, shown, now, some} of this.values) {
        text(shown, now(status));
        pair.classList.toggle("some", Boolean(some?.(status)));
      }
    }
  }

  // --- Tables ---

  class Table {
    // columns: {name, about, value: of a row, to sort by, show: a text or what fills a cell, number, kind: class of a cell}
    constructor(place, caption, columns) {
      this.columns = columns;
      this.rows = new Map();
      this.order = null;  // as the rows come
      const box = make("div", "scroll");
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", caption);
      const table = make("table");
      const line = make("tr");
      this.heads = columns.map((column, place_) => {
        const head = make("th", column.number ? "n" : "");
        const button = make("button", "", column.name);
        head.scope = "col";
        button.type = "button";
        if (column.about) { button.title = column.about; }
        button.addEventListener("click", () => this.sortBy(place_));
        head.append(button);
        return head;
      });
      line.append(...this.heads);
      const top = make("thead");
      top.append(line);
      this.body = make("tbody");
      table.append(make("caption", "", caption), top, this.body);
      box.append(table);
      place.append(box);
    }

    sortBy(place) {
      // Of numbers the greatest are looked for, of words the first.
      const first = this.columns[place].number ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const before = this.heads[place].getAttribute("aria-sort");
      const way = before === null ? first : before === first ? second : null;
      this.heads.forEach((head) => head.removeAttribute("aria-sort"));
      if (way) { this.heads[place].setAttribute("aria-sort", way); }
      this.order = way && {place, sign: way === "ascending" ? 1 : -1};
      this.arrange();
    }

    update(rows, keyOf) {
      const seen = new Map();
      for (const row of rows) {
        let key = keyOf(row);
        while (seen.has(key)) { key += "+"; }
        const known = this.rows.get(key) ?? this.makeRow();
        known.row = row;
        seen.set(key, known);
        this.columns.forEach((column, place) => {
          const cell = known.cells[place];
          const shown = column.show(row);
          if (typeof shown === "string") { text(cell, shown); } else { shown.into(cell); }
          if (column.some) { cell.classList.toggle("some", column.some(row)); }
        });
      }
      for (const [key, {line}] of this.rows) {
        if (!seen.has(key)) { line.remove(); }
      }
      this.rows = seen;
      this.arrange();
    }

    makeRow() {
      const line = make("tr");
      const cells = this.columns.map((column, place) => {
        const cell = make(place === 0 ? "th" : "td", [column.number ? "n" : "", column.kind ?? ""].join(" ").trim());
        if (place === 0) { cell.scope = "row"; }
        return cell;
      });
      line.append(...cells);
      return {line, cells};
    }

    arrange() {
      const known = [...this.rows.values()];
      if (this.order) {
        const {place, sign} = this.order;
        const value = ({row}) => this.columns[place].value(row);
        known.sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          // What has no value comes last, either way.
          if (x === null || y === null) { return (x === null) - (y === null); }
          return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
        });
      }
      known.forEach(({line}, place) => {
        if (this.body.children[place] !== line) { this.body.insertBefore(line, this.body.children[place] ?? null); }
      });
    }
  }

  // Several nodes in a cell, made anew when `shown` is another text.
  const nodes = (shown, build) => ({
    into(cell) {
      if (cell.shown !== shown) {
        cell.shown = shown;
        cell.replaceChildren(...build());
      }
    },
  });

  const STATES = ["down", "unresolved", "draining", "drained", "up"];
  const LOOKS = {up: "good", down: "bad", unresolved: "bad", draining: "warn", drained: "wait"};
  const WORDS = {"health checks": "fails its health checks", hung: "all its streams fell silent", failures: "failed, is left out for a while"};

  const why = (row) => row.error ?? (row.why ?? []).map((cause) => WORDS[cause] ?? cause).join("; ");

  const named = (row) => nodes(JSON.stringify([row.name, row.url]), () => [
    document.createTextNode(row.name),
    ...row.url === row.name ? [] : [make("span", "s", row.url)],
  ]);

  const state = (row) => nodes(JSON.stringify([row.state, why(row)]), () => [
    make("span", `mark ${LOOKS[row.state] ?? "wait"}`, row.state),
    ...why(row) ? [make("span", "s", why(row))] : [],
  ]);

  const number = (name, value, show, more = {}) => ({name, value, show: (row) => show(value(row)), number: true, ...more});

  const BACKENDS = [
    {name: "Backend", value: (row) => row.name, show: named},
    {name: "State", value: (row) => STATES.indexOf(row.state), show: state, kind: "wide"},
    number("In flight", (row) => row.in_flight, count, {about: "Exchanges that it works on now"}),
    number("Exch/s", (row) => row.rates.exchanges, amount, {about: "Exchanges ended a second"}),
    number("Err/s", (row) => row.rates.errors, amount, {about: "Failures a second", some: (row) => row.rates.errors > 0}),
    number("TTFT p50", (row) => row.ttft.p50, time),
    number("TTFT p99", (row) => row.ttft.p99, time),
    number("ITL p50", (row) => row.itl.p50, time),
    number("ITL p99", (row) => row.itl.p99, time),
    number("Exchanges", (row) => row.exchanges, count, {about: "Since the start"}),
    number("Failures", (row) => row.failures, count, {about: "Since the start"}),
    number("Silent", (row) => row.seconds_since_content, silence, {about: "Time since a byte of content came from it"}),
  ];

  const word = (name, key, more = {}) => ({name, value: (row) => row[key], show: (row) => row[key] === null ? DASH : String(row[key]), ...more});

  const FAILURES = [
    {name: "At (UTC)", value: (row) => row.at, show: (row) => clock(row.at), kind: "plain"},
    word("Reason", "reason", {kind: "wide"}),
    word("Outcome", "outcome"),
    word("Phase", "phase"),
    word("Status", "status", {number: true}),
    word("Pool", "pool", {kind: "wide"}),
    word("Model", "model", {kind: "wide"}),
    word("Backend", "backend", {kind: "wide"}),
    {
      name: "Request", value: (row) => row.request_id, kind: "id",
      show: (row) => nodes(row.request_id, () => {
        const link = make("a", "", row.request_id || DASH);
        link.href = `exchanges?id=${encodeURIComponent(row.request_id)}`;
        return [link];
      }),
    },
  ];

  // --- Pools ---

  function some(names) {
    const rest = names.length - SHOWN;
    return names.slice(0, SHOWN).join(", ") + (rest > 0 ? ` and ${count(rest)} more` : "");
  }

  class Pool {
    constructor(name) {
      this.node = fromTemplate("pool");
      this.title = this.node.querySelector("h3");
      this.node.setAttribute("aria-label", `Pool ${name}`);
      this.table = new Table(this.node.querySelector(".table"), `Backends of the pool ${name}`, BACKENDS);
    }

    update(pool, isDefault) {
      nodes(JSON.stringify([pool.name, isDefault]), () => [
        document.createTextNode(pool.name),
        ...isDefault ? [make("span", "mark", "default pool")] : [],
      ]).into(this.title);
      const {size, waiting: now = 0, full = 0, late = 0} = pool.queue;
      facts(this.node.querySelector(".plan"), [
        ["Models", some(pool.models)],
        ["Aliases", some(Object.entries(pool.aliases).map(([alias, model]) => `${alias} \u2192 ${model}`))],
        ["Queue", `${count(now)} of ${count(size)} waiting`],
        ["Refused", full || late ? `${count(full)} as it was full, ${count(late)} too late` : ""],
      ]);
      this.table.update(pool.backends, (row) => row.name);
    }
  }

  const pools = new Map();

  function showPools(status) {
    const names = new Set(status.pools.map((pool) => pool.name));
    for (const [name, pool] of pools) {
      if (!names.has(name)) {
        pool.node.remove();
        pools.delete(name);
      }
    }
    status.pools.forEach((each, place) => {
      if (!pools.has(each.name)) { pools.set(each.name, new Pool(each.name)); }
      const {node} = pools.get(each.name);
      const list = byId("pools");
      if (list.children[place] !== node) { list.insertBefore(node, list.children[place] ?? null); }
      pools.get(each.name).update(each, each.name === status.default_pool);
    });
  }

  // --- News, for those who do not see the page ---

  let before = null;

  function statesOf(status) {
    return new Map(status.pools.flatMap((pool) => pool.backends.map((row) => [`${pool.name}: ${row.name}`, row.state])));
  }

  function tell(news) {
    if (news.length) { byId("news").textContent = news.join(" "); }
  }

  function compare(status) {
    const states = statesOf(status);
    if (before) {
      const changed = [...states].filter(([name, state_]) => before.states.has(name) && before.states.get(name) !== state_);
      const news = changed.length > 4 ? [`${changed.length} backends changed their state.`]
        : changed.map(([name, state_]) => `${name} is ${state_}.`);
      if (before.ready !== status.ready) { news.push(status.ready ? "Ready." : `Not ready: ${status.reason}.`); }
      if (!before.faults && status.reload_faults.length) { news.push("The last reload failed."); }
      tell(news);
    }
    before = {states, ready: status.ready, faults: status.reload_faults.length};
  }

  // --- All of it ---

  const cards = CARDS.map((card) => new Card(card));
  const failures = new Table(byId("failures"), "Last exchanges that failed", FAILURES);
  let skew = 0;  // milliseconds by which the proxy's clock is ahead of the browser's
  let started = null;
  let shownAt = null;

  function showUptime() {
    if (started !== null) { text(byId("uptime"), age((Date.now() + skew - started) / 1000)); }
  }

  function show(status) {
    shownAt = new Date(Date.now() + skew);
    started = Date.parse(status.started);
    document.title = status.ready ? "llmpipe" : "llmpipe: not ready";
    text(byId("ready"), status.ready ? "Ready" : "Not ready");
    byId("ready").className = `mark ${status.ready ? "good" : "bad"}`;
    byId("not-ready").hidden = status.ready;
    text(byId("reason"), status.reason ?? "");
    text(byId("version"), status.version);
    text(byId("pid"), String(status.pid));
    text(byId("clients"), count(status.clients));
    const states = [...statesOf(status).values()];
    text(byId("up"), `${count(states.filter((each) => each === "up").length)} of ${count(states.length)}`);
    showUptime();
    byId("faults").hidden = !status.reload_faults.length;
    nodes(JSON.stringify(status.reload_faults), () => status.reload_faults.map((fault) => make("li", "", fault))).into(byId("fault-list"));
    cards.forEach((card) => card.update(status));
    showPools(status);
    failures.update(status.failures, (row) => `${row.at} ${row.request_id}`);
    byId("failures").hidden = !status.failures.length;
    byId("no-failures").hidden = Boolean(status.failures.length);
    compare(status);
  }

  let samples = [];

  function showSamples(found) {
    samples = found;
    cards.forEach((card) => card.plot.update(samples));
  }

  function addSample(sample) {
    const last = samples.at(-1);
    if (last && sample.at - last.at > 12) {
      loadSamples();  // one was missed
    } else if (!last || sample.at !== last.at) {
      showSamples([...samples.filter(({at}) => at > sample.at - SPAN), sample]);
    }
  }

  async function loadSamples() {
    try {
      const answer = await fetch("history", {cache: "no-store"});
      skew = Date.parse(answer.headers.get("date")) - Date.now() || 0;
      showSamples((await answer.json()).samples);
    } catch {
      // The event stream tells whether the proxy is there; it comes back here when it is.
    }
  }

  let source = null;
  let timer = 0;

  function linked(kind, words) {
    const lost = kind === "bad";
    if (byId("link").shown !== words && (lost || byId("link").className === "bad")) { tell([`${words}.`]); }
    text(byId("link"), words);
    byId("link").className = kind;
    byId("lost").hidden = !lost || shownAt === null;
    if (lost && shownAt !== null) {
      byId("lost-at").dateTime = shownAt.toISOString();
      text(byId("lost-at"), `${shownAt.toISOString().slice(11, 19)} UTC`);
    }
    document.body.classList.toggle("stale", lost);
  }

  function lose() {
    linked("bad", "Connection lost, retrying");
  }

  function heard() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      lose();
      connect();
    }, SILENCE);
  }

  function connect() {
    source?.close();
    source = new EventSource("events");
    source.addEventListener("open", () => {
      linked("good", "Live");
      loadSamples();
      heard();
    });
    source.addEventListener("status", ({data}) => {
      show(JSON.parse(data));
      heard();
    });
    source.addEventListener("sample", ({data}) => addSample(JSON.parse(data)));
    source.addEventListener("error", () => {
      lose();
      clearTimeout(timer);
      // It was refused: the browser leaves that at that.
      if (source.readyState === EventSource.CLOSED) { timer = setTimeout(connect, RETRY); }
    });
  }

  let hiding = 0;

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => {
        source.close();
        clearTimeout(timer);
        linked("wait", "Paused");
      }, UNSEEN);
    } else if (source.readyState === EventSource.CLOSED) {
      clearTimeout(timer);
      connect();
    }
  });

  setInterval(showUptime, 1000);
  connect();
})();
