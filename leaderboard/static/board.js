"use strict";
// The ranking's controls: sorting, search, filters, weights for the tasks. All of it stands in the address, so that
// a link shows what its sender saw. Without this script the page shows everything in the board's own order.
(function () {
  const shared = window.draftrank;
  const source = document.getElementById("board-data");
  const table = document.getElementById("ranking");
  if (!source || !table) return;
  const data = JSON.parse(source.textContent);
  const evidence = new shared.evidence.Evidence(data);
  const element = (id) => document.getElementById(id);
  const section = element("board");
  const plain = () => data.tasks.map(() => 1);

  const rows = data.rows.map((row, index) => ({ ...row, index, shown: true, now: null }));
  const byDraft = new Map(rows.map((row) => [row.draft, row]));
  const bodies = [...table.tBodies];
  bodies.forEach((body) => {
    for (const line of body.rows) {
      const row = byDraft.get(line.dataset.draft);
      if (row) Object.assign(row, { line, body });
    }
  });
  for (const line of element("heat") ? element("heat").tBodies[0].rows : []) {
    const row = byDraft.get(line.dataset.draft);
    if (row) row.heat = line;
  }
  rows.forEach((row) => {
    row.words = [row.draft, row.title, row.proposer, row.made, row.trained ? "trained" : "no training"].join(" ").toLowerCase();
    row.cells = row.line.cells;
    row.still = { rank: row.cells[0].textContent, speedup: row.cells[2].innerHTML };
  });

  // Sorting: what a column compares, and whether more is better.
  const UP = ["rank", "draft", "cost", "parameters", "bytes", "memory", "output", "build"];
  const headers = [...table.querySelectorAll("th[data-sort]")];
  const value = {
    // By range, then by speed: see build_boards. (Speedups stay far below 1e4.)
    rank: (row) => (!row.now ? row.index : row.now.rank ? (row.now.rank[0] * 1e5 + row.now.rank[1]) * 1e4 - row.now.speedup : null),
    draft: (row) => row.title.toLowerCase(),
    speedup: (row) => (row.now ? row.now.speedup : row.speedup),
  };
  const valueOf = (key) => value[key] || ((row) => row[key]);

  const initial = () => ({ sort: "rank", q: "", techniques: [], only: [], weights: plain(), compare: [] });
  let state = initial();
  // A long board lays out its first rows only, until the reader asks for all.
  const FIRST = 100;
  let limit = FIRST;
  let sorted = rows;

  function read() {
    const found = initial();
    const hash = location.hash.slice(1);
    if (!hash.includes("=")) return found;
    const given = new URLSearchParams(hash);
    const list = (name) => (given.get(name) || "").split(",").filter(Boolean);
    const sort = given.get("sort") || "";
    if (headers.some((header) => header.dataset.sort === sort.replace(/^-/, ""))) found.sort = sort;
    found.q = (given.get("q") || "").slice(0, 200);
    found.techniques = given.getAll("technique").filter((name) => rows.some((row) => row.techniques.includes(name)));
    found.only = list("only").filter((name) => Object.hasOwn(ONLY, name));
    found.compare = given.getAll("compare").filter((draft) => byDraft.has(draft)).slice(0, 4);
    for (const entry of given.getAll("weight")) {
      const cut = entry.lastIndexOf(":");
      const task = data.tasks.indexOf(entry.slice(0, cut));
      const weight = Number(entry.slice(cut + 1));
      if (task >= 0 && Number.isInteger(weight) && weight >= 0 && weight <= 5) found.weights[task] = weight;
    }
    if (found.weights.every((weight) => !weight)) found.weights = plain();
    return found;
  }

  function write() {
    const given = new URLSearchParams();
    if (state.sort !== "rank") given.set("sort", state.sort);
    if (state.q) given.set("q", state.q);
    state.techniques.forEach((name) => given.append("technique", name));
    if (state.only.length) given.set("only", state.only.join(","));
    if (weighted()) {
      state.weights.forEach((weight, task) => {
        if (weight !== 1) given.append("weight", data.tasks[task] + ":" + weight);
      });
    }
    state.compare.forEach((draft) => given.append("compare", draft));
    const hash = given.toString();
    // With the address of the page itself: a page that no server sent may not be given another.
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  }

  const ONLY = {
    trained: (row) => row.trained === true,
    free: (row) => row.trained === false,
    lossless: (row) => !row.lossy,
    complete: (row) => row.complete,
  };
  const weighted = () => new Set(state.weights).size > 1;

  function matches(row) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    return (
      words.every((word) => row.words.includes(word)) &&
      state.techniques.every((name) => row.techniques.includes(name)) &&
      state.only.every((name) => ONLY[name](row))
    );
  }

  const times = (number) => number.toFixed(2) + "×";
  // An end that is not 1 is not rounded to 1: see board/formats.py.
  const end = (number) => number.toFixed([2, 3, 4].find((digits) => Number(number.toFixed(digits)) !== 1) || 2);
  const span = (ends) => ends.map(end).join("–");

  // Speedups and ranks under the reader's weights.
  let weighedWith = plain().join();
  function weigh() {
    const key = state.weights.join();
    if (key === weighedWith) return;
    weighedWith = key;
    const own = !weighted();
    for (const lossy of [false, true]) {
      const field = rows.filter(
        (row) => row.ranked && row.lossy === lossy && !own && evidence.overall(row.index, state.weights),
      );
      const ranks = evidence.ranks(
        field.map((row) => row.index),
        state.weights,
      );
      field.forEach((row, place) => {
        const found = evidence.overall(row.index, state.weights);
        const [low, high] = evidence.interval(found);
        row.now = { speedup: Math.exp(found.value), low, high, rank: ranks[place] };
      });
    }
    rows.forEach((row) => {
      if (own) row.now = null;
      else if (!row.ranked || !row.now) row.now = { speedup: null, rank: null };
      paint(row);
    });
    table.classList.toggle("weighted", !own);
  }

  function paint(row) {
    const [rank, , speedup, drawn] = row.cells;
    if (!row.now) {
      rank.textContent = row.still.rank;
      speedup.innerHTML = row.still.speedup;
    } else {
      const range = row.now.rank;
      rank.textContent = !range ? "–" : range[0] === range[1] ? range[0] : range.join("–");
      speedup.replaceChildren();
      const figure = document.createElement("span");
      figure.className = "figure";
      figure.textContent = row.now.speedup === null ? "–" : times(row.now.speedup);
      speedup.append(figure);
      if (row.now.speedup !== null) {
        const ends = document.createElement("span");
        ends.className = "ends";
        ends.textContent = span([row.now.low, row.now.high]);
        speedup.append(" ", ends);
      }
    }
    const chart = drawn.querySelector("svg");
    if (!chart) return;
    const shown = row.now || row;
    chart.classList.toggle("gone", shown.speedup === null);
    if (shown.speedup === null) return;
    const at = (selector, from, to) => {
      const line = chart.querySelector(selector);
      if (!line) return;
      line.setAttribute("x1", place(from));
      line.setAttribute("x2", place(to));
    };
    at(".span", shown.low, shown.high);
    const beyond = (selector, hidden) => chart.querySelectorAll(selector).forEach((arrow) => arrow.toggleAttribute("hidden", hidden));
    beyond(".left", shown.low >= low);
    beyond(".right", shown.high <= high);
    at(".value", shown.speedup, shown.speedup);
    chart.setAttribute("aria-label", "speedup " + times(shown.speedup) + (shown.low ? ", interval " + span([shown.low, shown.high]) : ""));
  }

  const [low, high, left, right] = ["low", "high", "left", "right"].map((name) => Number(section.dataset[name]));
  const place = (speedup) => left + Math.min(Math.max(Math.log(speedup / low) / Math.log(high / low), 0), 1) * (right - left);

  function order() {
    const key = state.sort.replace(/^-/, "");
    const sign = state.sort.startsWith("-") ? -1 : 1;
    const of = valueOf(key);
    sorted = [...rows].sort((one, other) => {
      const a = of(one);
      const b = of(other);
      if (a === b) return one.index - other.index;
      if (a === null || a === undefined) return 1; // unknown comes last, whichever way
      if (b === null || b === undefined) return -1;
      return (a < b ? -1 : 1) * sign;
    });
    rows.forEach((row) => hide(row, true)); // what is not laid out moves at no cost
    bodies.forEach((body) => body.append(...sorted.filter((row) => row.body === body).map((row) => row.line)));
    const heat = sorted.filter((row) => row.heat);
    if (heat.length) heat[0].heat.parentNode.append(...heat.map((row) => row.heat));
    headers.forEach((header) => {
      if (header.dataset.sort === key) header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    });
  }

  function hide(row, hidden) {
    if (row.line.hidden !== hidden) row.line.hidden = hidden;
    if (row.heat && row.heat.hidden !== hidden) row.heat.hidden = hidden;
  }

  function filter() {
    let shown = 0;
    bodies.forEach((body) => {
      for (const row of sorted) {
        if (row.body !== body) continue;
        row.shown = matches(row);
        shown += row.shown;
        hide(row, !row.shown || shown > limit);
      }
    });
    element("more").hidden = shown <= limit;
    element("more").textContent = `Show all ${shown} drafts`;
    bodies.forEach((body) => (body.hidden = !rows.some((row) => row.body === body && row.shown)));
    element("nothing").hidden = shown > 0;
    element("count").textContent = shown === rows.length ? `${shown} drafts` : `${shown} of ${rows.length} drafts`;
  }

  function controls() {
    element("search").value = state.q;
    element("sorter").value = state.sort;
    document.querySelectorAll(".filter").forEach((chip) => {
      const on = chip.dataset.only ? state.only.includes(chip.dataset.only) : state.techniques.includes(chip.dataset.technique);
      chip.setAttribute("aria-pressed", String(on));
    });
    document.querySelectorAll("#weights input").forEach((slider, task) => {
      slider.value = state.weights[task];
      slider.nextElementSibling.textContent = state.weights[task];
    });
    if (weighted()) element("weights").open = true;
  }

  function apply(changes) {
    state = { ...state, ...changes };
    const sorting = "sort" in changes || "weights" in changes;
    weigh();
    if (sorting) order();
    filter();
    controls();
    write();
    if (shared.compare) shared.compare();
  }

  function sortBy(key) {
    const natural = UP.includes(key) ? key : "-" + key;
    const other = UP.includes(key) ? "-" + key : key;
    apply({ sort: state.sort === natural ? other : natural });
  }

  headers.forEach((header) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(header.dataset.sort));
    header.append(button);
    const name = (header.querySelector("abbr") || header).textContent.trim();
    for (const direction of UP.includes(header.dataset.sort) ? ["", "-"] : ["-", ""]) {
      const option = document.createElement("option");
      option.value = direction + header.dataset.sort;
      option.textContent = name + (direction ? ", falling" : ", rising");
      element("sorter").append(option);
    }
  });
  element("sorter").addEventListener("change", (event) => apply({ sort: event.target.value }));
  element("search").addEventListener("input", (event) => apply({ q: event.target.value }));
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll(".filter").forEach((chip) =>
    chip.addEventListener("click", () => {
      const name = chip.dataset.only || chip.dataset.technique;
      const list = chip.dataset.only ? "only" : "techniques";
      let next = state[list].includes(name) ? state[list].filter((other) => other !== name) : [...state[list], name];
      if (name === "trained") next = next.filter((other) => other !== "free");
      if (name === "free") next = next.filter((other) => other !== "trained");
      apply({ [list]: next });
    }),
  );
  document.querySelectorAll("#weights input").forEach((slider, task) =>
    slider.addEventListener("input", () => {
      const weights = [...state.weights];
      weights[task] = Number(slider.value);
      if (weights.some((weight) => weight)) apply({ weights });
      else controls();
    }),
  );
  element("more").addEventListener("click", () => {
    limit = Infinity;
    filter();
  });
  element("reset").addEventListener("click", () => {
    apply(initial());
    element("weights").open = false;
  });
  shared.copyButton(element("copy-link"), () => location.href);
  addEventListener("hashchange", () => apply(read()));

  shared.board = {
    data,
    evidence,
    rows,
    span,
    compared: () => state.compare,
    choose: (draft, on) =>
      apply({ compare: on ? [...state.compare.filter((other) => other !== draft), draft] : state.compare.filter((other) => other !== draft) }),
    weights: () => state.weights,
  };
  element("controls").hidden = false;
  state = read();
  apply(state);
})();
