// Keeps the page up to date: the server sends the body again when it has changed. What a person is doing stays: ticked
// boxes, focus, the place in the log. A hidden tab holds no connection, because browsers have few for one address.
"use strict";

const live = document.getElementById("live");
const lost = document.getElementById("lost");
let source = null;

// A selector that finds an element of the body again in its next version: by its id or, of a link, by its address.
function place(element) {
  if (!element || !live.contains(element)) return "";
  return element.id ? `#${CSS.escape(element.id)}` : element.href ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : "";
}

function keep() {
  const ticked = [...live.querySelectorAll("input:checked")].map((each) => each.id);
  const focus = place(document.activeElement);
  const log = document.getElementById("log");
  const atEnd = !log || log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  const scrolled = [...live.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  return { ticked, focus, atEnd, top: log ? log.scrollTop : 0, scrolled };
}

function restore(kept) {
  for (const id of kept.ticked) {
    const box = document.getElementById(id);
    if (box) box.checked = true;
  }
  const focus = kept.focus && live.querySelector(kept.focus);
  if (focus) focus.focus({ preventScroll: true });
  const log = document.getElementById("log");
  if (log) log.scrollTop = kept.atEnd ? log.scrollHeight : kept.top;
  live.querySelectorAll(".scroll").forEach((each, place) => { each.scrollLeft = kept.scrolled[place] || 0; });
}

function words(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function age() {
  for (const each of document.querySelectorAll("time.ago")) {
    each.textContent = words(Date.now() / 1000 - Number(each.dataset.at));
  }
}

function listen() {
  if (source) return;
  source = new EventSource(location.pathname + location.search);
  source.onmessage = (event) => {
    const kept = keep();
    live.innerHTML = JSON.parse(event.data).html;
    restore(kept);
    age();
    document.body.dataset.versions = Number(document.body.dataset.versions || 0) + 1;
  };
  source.onopen = () => { lost.hidden = true; };
  source.onerror = () => {
    lost.hidden = false;
    if (source.readyState === EventSource.CLOSED) { source = null; }
  };
}

function look() {
  if (document.hidden && source) { source.close(); source = null; }
  if (!document.hidden) listen();
}

restore({ ticked: [], focus: "", atEnd: true, top: 0, scrolled: [] });
age();
setInterval(age, 1000);
if (document.body.dataset.live) {
  document.addEventListener("visibilitychange", look);
  look();
}
