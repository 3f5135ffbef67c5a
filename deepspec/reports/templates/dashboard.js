"use strict";
(() => {
  const minutes = iso => (Date.now() - Date.parse(iso)) / 60000;
  const ago = passed =>
    passed < 1.5 ? "just now"
    : passed < 90 ? `${Math.round(passed)} minutes ago`
    : passed < 48 * 60 ? `${Math.round(passed / 60)} hours ago`
    : `${Math.round(passed / 1440)} days ago`;
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const passed = minutes(time.dateTime);
    if (passed >= 0) time.nextElementSibling.textContent = ` (${ago(passed)})`;
  }
  const old = document.getElementById("old");
  if (minutes(old.dataset.written) > 26 * 60) old.hidden = false;

  // One stop for the tab key in each calendar; arrow keys move between its nights.
  for (const grid of document.querySelectorAll(".calendar")) {
    const nights = [...grid.querySelectorAll("a")];
    nights.forEach((night, place) => night.tabIndex = place === nights.length - 1 ? 0 : -1);
    grid.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -7, ArrowDown: 7, Home: -Infinity, End: Infinity }[event.key];
      const place = nights.indexOf(document.activeElement);
      if (!step || place < 0) return;
      event.preventDefault();
      const to = Math.min(nights.length - 1, Math.max(0, place + step));
      nights[place].tabIndex = -1;
      nights[to].tabIndex = 0;
      nights[to].focus();
    });
  }
})();
