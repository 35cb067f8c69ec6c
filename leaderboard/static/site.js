"use strict";
// On every page: the theme's button, and a button beside each snippet that copies it.
(function () {
  const shared = (window.draftrank = window.draftrank || {});
  const html = document.documentElement;
  const themes = ["system", "light", "dark"];
  const words = { system: "as the system", light: "light", dark: "dark" };
  const listeners = [];

  shared.onTheme = (listener) => listeners.push(listener);
  shared.theme = () =>
    html.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  const button = document.getElementById("theme");
  const show = () => (button.querySelector("span").textContent = words[html.dataset.theme || "system"]);
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(html.dataset.theme || "system") + 1) % themes.length];
    if (next === "system") delete html.dataset.theme;
    else html.dataset.theme = next;
    try {
      localStorage.setItem("draftrank-theme", next);
    } catch (_) {
      // It holds for this page then.
    }
    show();
    listeners.forEach((listener) => listener());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    listeners.forEach((listener) => listener()),
  );
  show();
  button.hidden = false;

  shared.copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (_) {
      // Older browsers, and pages that no server sent.
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "hidden";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };

  shared.copyButton = (button, text) => {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      button.textContent = (await shared.copy(text())) ? "Copied" : "Not copied";
      setTimeout(() => (button.textContent = label), 1500);
    });
  };

  document.querySelectorAll(".snippet").forEach((snippet) => {
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "copy";
    copy.textContent = "Copy";
    copy.setAttribute("aria-label", "Copy: " + snippet.getAttribute("aria-label"));
    shared.copyButton(copy, () => snippet.querySelector("code").textContent);
    snippet.append(copy);
  });
})();
