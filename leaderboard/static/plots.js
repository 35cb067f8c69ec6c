"use strict";
// Turns the drawn plots into live ones, once the reader comes near them. Whatever goes wrong, the drawings stay.
(function () {
  const shared = window.draftrank;
  const source = document.getElementById("plot-data");
  if (!source || !("IntersectionObserver" in window)) return;
  const given = JSON.parse(source.textContent);
  const rows = JSON.parse(document.getElementById("board-data").textContent).rows;
  const figures = [...document.querySelectorAll("[data-plot]")];
  const live = new Map();

  function library() {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = document.documentElement.dataset.root + "static/vega.js";
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = reject;
      document.head.append(script);
    });
  }

  async function bring(embed, figure) {
    const drawing = figure.querySelector(".drawing");
    let host = drawing.querySelector(".live");
    if (!host) {
      host = document.createElement("div");
      host.className = "live";
      host.hidden = true;
      host.setAttribute("role", "img");
      host.setAttribute("aria-label", drawing.querySelector("img").alt);
      drawing.append(host);
    }
    const spec = { ...given.plots[figure.dataset.plot], datasets: { drafts: rows } };
    const old = live.get(figure);
    const made = await embed(host, spec, {
      ast: true,
      actions: false,
      renderer: "canvas",
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
      config: given.themes[shared.theme()],
    });
    if (old) old.finalize();
    live.set(figure, made);
    host.hidden = false;
    drawing.querySelectorAll("img").forEach((image) => (image.hidden = true));
  }

  async function start() {
    try {
      const embed = await library();
      const all = () => figures.forEach((figure) => bring(embed, figure).catch(() => {}));
      shared.onTheme(all);
      all();
    } catch (_) {
      // The drawings stay.
    }
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watcher.disconnect();
      start();
    },
    { rootMargin: "400px" },
  );
  figures.forEach((figure) => watcher.observe(figure));
})();
