"use strict";
// Before anything is drawn: the theme that the reader chose on an earlier page, if any.
(function () {
  try {
    const chosen = localStorage.getItem("draftrank-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch (_) {
    // No storage here: the system's theme it is.
  }
})();
