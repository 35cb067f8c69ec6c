"use strict";
// Two to four drafts side by side, with the ratio of each pair.
(function () {
  const shared = window.draftrank;
  const board = shared.board;
  if (!board) return;
  const MOST = 4;
  const panel = document.getElementById("compare");
  const boxes = new Map();

  const make = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const number = (digits, unit) => (value) => (value === null || value === undefined ? "–" : value.toFixed(digits) + (unit || ""));
  const large = (units, step) => (value) => {
    if (value === null || value === undefined) return "–";
    if (!value) return "none";
    let index = 0;
    while (value >= step && index < units.length - 1) [value, index] = [value / step, index + 1];
    return `${value.toFixed(index && value < 100 ? 1 : 0)} ${units[index]}`.trim();
  };
  const span = (low, high) => (low === null ? "" : ` (${board.span([low, high])})`);
  const facts = [
    ["Proposed by", (row) => row.proposer],
    ["Made by", (row) => row.made],
    ["Speedup", (row) => number(2, "×")((row.now || row).speedup) + ((row.now || row).speedup === null ? "" : span((row.now || row).low, (row.now || row).high))],
    ["Rank", (row) => row.cells[0].textContent],
    ["Tokens/s", (row) => number(1)(row.tps)],
    ["Acceptance length", (row) => number(2)(row.acceptance)],
    ["Tokens per step (k)", (row) => String(row.k)],
    ["Draft cost", (row) => number(3)(row.cost)],
    ["Parameters", (row) => large(["", "k", "M", "B"], 1000)(row.parameters)],
    ["Weights on disk", (row) => large(["B", "kB", "MB", "GB"], 1000)(row.bytes)],
    ["Peak memory", (row) => large(["B", "kB", "MB", "GB"], 1000)(row.memory)],
  ];

  board.rows.forEach((row) => {
    const label = make("label", undefined, "pick");
    const box = make("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", "Compare " + row.title);
    box.addEventListener("change", () => board.choose(row.draft, box.checked));
    label.append(box, " compare");
    row.cells[1].querySelector(".chips").after(label);
    boxes.set(row.draft, box);
  });

  shared.compare = () => {
    const chosen = board.compared();
    boxes.forEach((box, draft) => {
      box.checked = chosen.includes(draft);
      box.disabled = chosen.length >= MOST && !box.checked;
    });
    panel.hidden = chosen.length === 0;
    panel.replaceChildren();
    if (!chosen.length) return;
    const rows = chosen.map((draft) => board.rows.find((row) => row.draft === draft));
    panel.append(make("h3", "Side by side"));
    if (rows.length < 2) {
      panel.append(make("p", `${rows[0].title} is chosen. Choose another draft, up to ${MOST}.`));
      return;
    }
    panel.append(sideBySide(rows), pairs(rows));
    const clear = make("button", "Clear the comparison");
    clear.type = "button";
    clear.addEventListener("click", () => chosen.forEach((draft) => board.choose(draft, false)));
    panel.append(clear);
  };

  function table(label, head, lines) {
    const scroll = make("div", undefined, "scroll");
    for (const [name, value] of Object.entries({ tabindex: "0", role: "region", "aria-label": label })) {
      scroll.setAttribute(name, value);
    }
    const made = make("table");
    const top = make("tr");
    head.forEach((cell) => {
      const th = make("th");
      th.scope = "col";
      th.append(cell);
      top.append(th);
    });
    const thead = make("thead");
    thead.append(top);
    const body = make("tbody");
    lines.forEach(([name, ...cells]) => {
      const line = make("tr");
      const th = make("th", name);
      th.scope = "row";
      line.append(th, ...cells.map((cell) => make("td", cell)));
      body.append(line);
    });
    made.append(thead, body);
    scroll.append(made);
    return scroll;
  }

  function sideBySide(rows) {
    const head = rows.map((row) => {
      const link = make("a", row.title);
      link.href = document.documentElement.dataset.root + row.page;
      return link;
    });
    const tasks = board.data.tasks.map((task) => [
      "Speedup, " + task,
      ...rows.map((row) => (row.evidence[task] ? Math.exp(row.evidence[task][0]).toFixed(2) + "×" : "–")),
    ]);
    return table("Side by side", ["", ...head], [...facts.map(([name, of]) => [name, ...rows.map(of)]), ...tasks]);
  }

  function pairs(rows) {
    const lines = [];
    rows.forEach((one, index) =>
      rows.slice(index + 1).forEach((other) => {
        const name = `${one.title} over ${other.title}`;
        const found = board.evidence.ratio(one.index, other.index, board.weights());
        if (!found) {
          lines.push([name, "–", "–", "–", "too little in common"]);
          return;
        }
        const [low, high] = board.evidence.interval(found);
        const answer = low > 1 ? "faster" : high < 1 ? "slower" : "can't tell";
        const likely = board.evidence.aboveOne(found);
        lines.push([
          name,
          Math.exp(found.value).toFixed(2) + "×",
          board.span([low, high]),
          likely > 0.999 ? "> 99.9 %" : likely < 0.001 ? "< 0.1 %" : (100 * likely).toFixed(1) + " %",
          answer + (one.group === other.group ? "" : ", from different sessions"),
        ]);
      }),
    );
    return table("Ratios of pairs", ["Pair", "Ratio of speeds", "95 % interval", "Probability of being faster", "Answer"], lines);
  }

  shared.compare();
})();
